import CoreGraphics
import DepthKit
import Foundation
import SwiftUI

enum DepthStyle: String, CaseIterable, Identifiable {
    case colors = "Colours"
    case gray = "Gray"

    var id: Self { self }
}

/// Keeps the estimator off the main thread, one photo at a time.
actor DepthWorker {
    private let estimator = DepthEstimator()

    func estimate(_ photo: CGImage) throws -> DepthMap {
        try estimator.estimate(photo)
    }
}

@MainActor
final class DepthViewModel: ObservableObject {
    @Published private(set) var photo: CGImage?
    @Published private(set) var picture: CGImage?
    @Published private(set) var message: String?
    @Published var blend = 1.0
    @Published var style = DepthStyle.colors { didSet { paint() } }
    @Published var cutoff = 0.0 { didSet { paint() } }
    @Published var isCameraOn = false { didSet { switchCamera() } }

    private let worker = DepthWorker()
    private let camera = Camera()
    private var map: DepthMap?
    private var isBusy = false

    func open(_ url: URL) {
        isCameraOn = false
        do {
            show(try readImage(url))
        } catch {
            message = error.localizedDescription
        }
    }

    func stopCamera() {
        camera.stop()
    }

    private func switchCamera() {
        guard isCameraOn else {
            camera.stop()
            return
        }
        camera.start(
            onFrame: { frame in
                Task { @MainActor [weak self] in self?.show(frame) }
            },
            onFailure: { reason in
                Task { @MainActor [weak self] in self?.message = reason }
            }
        )
    }

    /// Frames that arrive while one is being worked on are dropped.
    private func show(_ image: CGImage) {
        guard !isBusy else {
            return
        }
        isBusy = true
        Task {
            defer { isBusy = false }
            do {
                let start = Date()
                map = try await worker.estimate(image)
                photo = image
                message = String(format: "%.0f ms", Date().timeIntervalSince(start) * 1000)
                paint()
            } catch {
                message = error.localizedDescription
            }
        }
    }

    private func paint() {
        picture = style == .colors ? map?.colors : map?.gray(cutoff: Float(cutoff))
    }
}
