import CoreGraphics
import CoreML
import Foundation

/// The functions of the package: one for each shape of photo.
public enum Framing: String, CaseIterable {
    case landscape
    case portrait

    public init(width: Int, height: Int) {
        self = width >= height ? .landscape : .portrait
    }
}

public enum DepthError: LocalizedError {
    case noModel
    case noPixels
    case unreadable(URL)
    case unwritable(URL)

    public var errorDescription: String? {
        switch self {
        case .noModel:
            return "The compiled model is missing: follow the three steps of the README."
        case .noPixels:
            return "The image could not be converted: try another file."
        case .unreadable(let url):
            return "\(url.lastPathComponent) is not an image that macOS can read: choose another file."
        case .unwritable(let url):
            return "\(url.path) cannot be written: choose another place."
        }
    }
}

/// Photo in, depth out, by the class that coremlc generates from the package.
public final class DepthEstimator {
    private let computeUnits: MLComputeUnits
    private var models: [Framing: DepthModel] = [:]

    public init(computeUnits: MLComputeUnits = .all) {
        self.computeUnits = computeUnits
    }

    /// The photo is stretched to the model's size, as the model was trained; stretch the result back to show it.
    public func estimate(_ photo: CGImage) throws -> DepthMap {
        let model = try loadModel(Framing(width: photo.width, height: photo.height))
        let description = model.model.modelDescription
        guard let size = description.inputDescriptionsByName["image"]?.imageConstraint else {
            throw DepthError.noModel
        }
        let pixels = try photo.pixelBuffer(width: size.pixelsWide, height: size.pixelsHigh)
        let output = try model.prediction(image: pixels)
        return try DepthMap(depth: output.depth, colors: output.colors)
    }

    private func loadModel(_ framing: Framing) throws -> DepthModel {
        if let model = models[framing] {
            return model
        }
        guard let url = Bundle.module.url(forResource: "DepthModel", withExtension: "mlmodelc") else {
            throw DepthError.noModel
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        configuration.functionName = framing.rawValue
        let model = try DepthModel(contentsOf: url, configuration: configuration)
        models[framing] = model
        return model
    }
}
