import AppKit
import SwiftUI

@main
struct DepthApp: App {
    init() {
        NSApplication.shared.setActivationPolicy(.regular)  // a program without a bundle starts in the background
    }

    var body: some Scene {
        WindowGroup("Depth") {
            ContentView()
        }
    }
}
