// Draws the points and cameras that stand in this page. Axes are WebGL's: x right, y up, z backward.
(() => {
  "use strict";

  const element = (id) => document.getElementById(id);
  const info = JSON.parse(element("scene").textContent);

  function bytes(id) {
    const block = element(id);
    const text = atob(block.textContent);
    block.remove(); // megabytes that nobody needs twice
    const values = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) values[index] = text.charCodeAt(index);
    return values;
  }

  const floats = (id) => new THREE.BufferAttribute(new Float32Array(bytes(id).buffer), 3);
  const colors = (id) => new THREE.BufferAttribute(bytes(id), 3, true);

  function makeRenderer() {
    THREE.ColorManagement.enabled = false; // colors go to the screen as they are in the photo
    const renderer = new THREE.WebGLRenderer({ canvas: element("view"), antialias: true });
    renderer.outputColorSpace = THREE.LinearSRGBColorSpace;
    renderer.setClearColor(0x14171c);
    renderer.setPixelRatio(window.devicePixelRatio);
    return renderer;
  }

  function makePoints() {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", floats("positions"));
    geometry.computeBoundingSphere();
    const paints = { photo: colors("photo-colors"), depth: colors("depth-colors") };
    geometry.setAttribute("color", paints.photo);
    const material = new THREE.PointsMaterial({ vertexColors: true, sizeAttenuation: false });
    return { points: new THREE.Points(geometry, material), paints };
  }

  function makeCameras() {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", floats("camera-lines"));
    geometry.setAttribute("color", colors("camera-colors"));
    return new THREE.LineSegments(geometry, new THREE.LineBasicMaterial({ vertexColors: true }));
  }

  // The photo's area in the plane z = 1, and how it fits into the window: as large as possible, in the middle.
  function fit() {
    const { left, right, top, bottom } = info.view;
    const width = window.innerWidth, height = window.innerHeight;
    const scale = Math.min(width / (right - left), height / (bottom - top)); // pixels a unit
    const x = (scale * (left + right)) / 2, y = (scale * (top + bottom)) / 2; // its middle, from the optical axis
    return { width, height, scale, x, y };
  }

  function start(renderer) {
    const scene = new THREE.Scene();
    const { points, paints } = makePoints();
    const cameras = makeCameras();
    scene.add(points, cameras);
    const sphere = points.geometry.boundingSphere;

    const eye = new THREE.PerspectiveCamera();
    eye.up.fromArray(info.view.up); // before the controls, which turn around it
    const controls = new THREE.OrbitControls(eye, renderer.domElement);
    controls.listenToKeyEvents(renderer.domElement);

    let waiting = false;
    function draw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        const distance = eye.position.distanceTo(controls.target);
        eye.near = distance / 1000;
        eye.far = 1.01 * Math.max(distance, eye.position.distanceTo(sphere.center) + sphere.radius);
        eye.updateProjectionMatrix();
        renderer.render(scene, eye);
      });
    }

    function resize() {
      const { width, height, scale, x, y } = fit();
      renderer.setSize(width, height, false);
      eye.fov = (360 / Math.PI) * Math.atan(height / 2 / scale);
      eye.aspect = width / height;
      eye.setViewOffset(width, height, x, y, width, height); // the principal point need not be in the middle
      draw();
    }

    function reset() {
      eye.position.fromArray(info.view.position);
      controls.target.fromArray(info.view.target);
      controls.update();
      draw();
    }

    function showPoints() {
      const step = Number(element("confidence").value);
      const count = info.confidence ? info.confidence.counts[step] : info.count;
      points.geometry.setDrawRange(0, count);
      element("count").textContent = `${count.toLocaleString("en")} points shown`;
      if (info.confidence) {
        const least = Number(info.confidence.thresholds[step].toPrecision(4));
        element("confidence-shown").textContent = step ? `at least ${least}: the surest ${100 - step} %` : "all points";
      }
      draw();
    }

    function showSize() {
      points.material.size = Number(element("size").value);
      draw();
    }

    const { scale } = fit();
    const area = scale * scale * (info.view.right - info.view.left) * (info.view.bottom - info.view.top);
    const spacing = Math.sqrt(area / (info.count / Math.max(1, info.cameras)));
    element("size").value = Math.min(6, Math.max(1.5, 1.2 * spacing)); // no gaps as the first camera sees them
    element("panel").open = window.innerWidth >= 600; // on a phone it would hide the scene
    element("confidence-control").hidden = !info.confidence;
    element("cameras-control").hidden = !info.cameras;

    element("size").addEventListener("input", showSize);
    element("confidence").addEventListener("input", showPoints);
    element("cameras").addEventListener("change", (event) => {
      cameras.visible = event.target.checked;
      draw();
    });
    for (const choice of document.getElementsByName("color")) {
      choice.addEventListener("change", () => {
        points.geometry.setAttribute("color", paints[choice.value]);
        draw();
      });
    }
    element("reset").addEventListener("click", reset);
    controls.addEventListener("change", draw);
    window.addEventListener("resize", resize);

    resize();
    reset();
    showPoints();
    showSize();
  }

  let renderer = null;
  try {
    renderer = makeRenderer();
  } catch {
    element("message").textContent = "The scene needs WebGL 2, which this browser does not offer or has switched off.";
    element("message").hidden = false;
  }
  if (renderer) start(renderer);
})();
