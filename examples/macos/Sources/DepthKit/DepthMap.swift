import Accelerate
import CoreGraphics
import CoreVideo
import Foundation
import VideoToolbox

/// What the model gave for one photo.
public struct DepthMap {
    public let width: Int
    public let height: Int
    /// Row by row, 0...1 over the image, 1 = nearest.
    public let values: [Float]
    /// The same, painted by the model.
    public let colors: CGImage

    init(depth: CVPixelBuffer, colors: CVPixelBuffer) throws {
        var painted: CGImage?
        VTCreateCGImageFromCVPixelBuffer(colors, options: nil, imageOut: &painted)
        guard let painted else {
            throw DepthError.noPixels
        }
        self.width = CVPixelBufferGetWidth(depth)
        self.height = CVPixelBufferGetHeight(depth)
        self.values = try DepthMap.floats(depth)
        self.colors = painted
    }

    /// kCVPixelFormatType_OneComponent16Half, whose rows are padded, to packed floats.
    private static func floats(_ buffer: CVPixelBuffer) throws -> [Float] {
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        let width = CVPixelBufferGetWidth(buffer)
        let height = CVPixelBufferGetHeight(buffer)
        var source = vImage_Buffer(
            data: CVPixelBufferGetBaseAddress(buffer),
            height: vImagePixelCount(height),
            width: vImagePixelCount(width),
            rowBytes: CVPixelBufferGetBytesPerRow(buffer)
        )
        var values = [Float](repeating: 0, count: width * height)
        let status = values.withUnsafeMutableBytes { bytes in
            var target = vImage_Buffer(
                data: bytes.baseAddress,
                height: vImagePixelCount(height),
                width: vImagePixelCount(width),
                rowBytes: width * MemoryLayout<Float>.stride
            )
            return vImageConvert_Planar16FtoPlanarF(&source, &target, 0)
        }
        guard status == kvImageNoError else {
            throw DepthError.noPixels
        }
        return values
    }

    /// White = nearest; what lies farther than `cutoff` (0 = keep all) is black.
    public func gray(cutoff: Float = 0) -> CGImage? {
        let bytes = values.map { value in value < cutoff ? 0 : UInt8(max(0, min(1, value)) * 255) }
        guard let provider = CGDataProvider(data: Data(bytes) as CFData) else {
            return nil
        }
        return CGImage(
            width: width,
            height: height,
            bitsPerComponent: 8,
            bitsPerPixel: 8,
            bytesPerRow: width,
            space: CGColorSpaceCreateDeviceGray(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue),
            provider: provider,
            decode: nil,
            shouldInterpolate: true,
            intent: .defaultIntent
        )
    }
}
