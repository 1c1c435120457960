// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "DepthDemo",
    platforms: [.macOS(.v15)],
    targets: [
        .target(name: "DepthKit", resources: [.copy("Resources/DepthModel.mlmodelc")]),
        .executableTarget(name: "depth-cli", dependencies: ["DepthKit"]),
        .executableTarget(
            name: "DepthApp",
            dependencies: ["DepthKit"],
            exclude: ["Info.plist"],
            // macOS asks for the camera only on behalf of a program with an Info.plist; this one has no bundle.
            linkerSettings: [
                .unsafeFlags([
                    "-Xlinker", "-sectcreate", "-Xlinker", "__TEXT", "-Xlinker", "__info_plist",
                    "-Xlinker", "Sources/DepthApp/Info.plist",
                ])
            ]
        ),
    ],
    swiftLanguageModes: [.v5]
)
