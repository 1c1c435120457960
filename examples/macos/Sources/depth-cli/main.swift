import DepthKit
import Foundation

let arguments = CommandLine.arguments.dropFirst().map { URL(fileURLWithPath: $0) }
guard let photo = arguments.first, arguments.count <= 2 else {
    FileHandle.standardError.write(Data("usage: swift run depth-cli PHOTO [DEPTH.png]\n".utf8))
    exit(2)
}
let out = arguments.count == 2 ? arguments[1] : photo.deletingPathExtension().appendingPathExtension("depth.png")

do {
    let image = try readImage(photo)
    let estimator = DepthEstimator()
    _ = try estimator.estimate(image)  // the first prediction also compiles the model
    let start = Date()
    let map = try estimator.estimate(image)
    let milliseconds = Date().timeIntervalSince(start) * 1000
    try writePNG(map.colors, to: out)
    print("\(out.path): \(map.width) x \(map.height), \(String(format: "%.1f", milliseconds)) ms")
} catch {
    FileHandle.standardError.write(Data("\(error.localizedDescription)\n".utf8))
    exit(1)
}
