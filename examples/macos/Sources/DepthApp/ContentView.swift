import DepthKit
import SwiftUI
import UniformTypeIdentifiers

struct ContentView: View {
    @StateObject private var model = DepthViewModel()

    var body: some View {
        VStack(spacing: 12) {
            picture
                .frame(maxWidth: .infinity, maxHeight: .infinity)
                .background(Color.black.opacity(0.1))
                .onDrop(of: [.fileURL], isTargeted: nil, perform: drop)
            controls
        }
        .padding()
        .frame(minWidth: 640, minHeight: 520)
        .onDisappear { model.stopCamera() }
    }

    @ViewBuilder private var picture: some View {
        if let photo = model.photo {
            ZStack {
                Image(decorative: photo, scale: 1).resizable()
                if let depth = model.picture {
                    Image(decorative: depth, scale: 1).resizable().opacity(model.blend)
                }
            }
            .aspectRatio(CGFloat(photo.width) / CGFloat(photo.height), contentMode: .fit)
        } else {
            Text(model.message ?? "Drop a photo here")
        }
    }

    private var controls: some View {
        HStack(spacing: 16) {
            Toggle("Camera", isOn: $model.isCameraOn)
            Picker("Depth", selection: $model.style) {
                ForEach(DepthStyle.allCases) { style in
                    Text(style.rawValue).tag(style)
                }
            }
            .frame(width: 180)
            Slider(value: $model.blend, in: 0...1) { Text("Photo to depth") }
            Slider(value: $model.cutoff, in: 0...1) { Text("Hide the far") }
                .disabled(model.style == .colors)
            if model.photo != nil, let message = model.message {
                Text(message).foregroundStyle(.secondary)
            }
        }
    }

    private func drop(_ providers: [NSItemProvider]) -> Bool {
        guard let provider = providers.first else {
            return false
        }
        _ = provider.loadObject(ofClass: URL.self) { url, _ in
            guard let url else {
                return
            }
            Task { @MainActor in model.open(url) }
        }
        return true
    }
}
