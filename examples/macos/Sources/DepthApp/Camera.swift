import AVFoundation
import CoreGraphics
import VideoToolbox

/// The default camera's frames as images.
final class Camera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate {
    private let session = AVCaptureSession()
    private let queue = DispatchQueue(label: "camera")
    private var onFrame: ((CGImage) -> Void)?

    func start(onFrame: @escaping (CGImage) -> Void, onFailure: @escaping (String) -> Void) {
        AVCaptureDevice.requestAccess(for: .video) { [weak self] isAllowed in
            guard let self else {
                return
            }
            guard isAllowed else {
                onFailure("Allow the camera in System Settings, Privacy & Security.")
                return
            }
            self.queue.async {
                self.onFrame = onFrame
                do {
                    try self.connect()
                    self.session.startRunning()
                } catch {
                    onFailure(error.localizedDescription)
                }
            }
        }
    }

    func stop() {
        queue.async {
            self.onFrame = nil
            self.session.stopRunning()
        }
    }

    private func connect() throws {
        guard session.inputs.isEmpty, let device = AVCaptureDevice.default(for: .video) else {
            return
        }
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        output.setSampleBufferDelegate(self, queue: queue)
        session.beginConfiguration()
        session.sessionPreset = .vga640x480
        session.addInput(try AVCaptureDeviceInput(device: device))
        session.addOutput(output)
        session.commitConfiguration()
    }

    func captureOutput(
        _ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection
    ) {
        guard let buffer = CMSampleBufferGetImageBuffer(sampleBuffer) else {
            return
        }
        var image: CGImage?
        VTCreateCGImageFromCVPixelBuffer(buffer, options: nil, imageOut: &image)
        if let image {
            onFrame?(image)
        }
    }
}
