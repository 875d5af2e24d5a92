// embedding-atlas asks WebGPU for 16-bit floats in shaders, which Chromium's software adapter lacks. It keeps only densities in
// them, so 32 bits draw the same map: shaders and their buffers are widened, and what is read back is made narrow again.
// An adapter that has 16 bits is left as it is.
if (navigator.gpu) {
    let lacks = false
    const has = GPUSupportedFeatures.prototype.has
    GPUSupportedFeatures.prototype.has = function (name) {
        return name == "shader-f16" || has.call(this, name)
    }
    const requestDevice = GPUAdapter.prototype.requestDevice
    GPUAdapter.prototype.requestDevice = function (wanted) {
        lacks = !has.call(this.features, "shader-f16")
        const requiredFeatures = wanted.requiredFeatures.filter(name => !lacks || name != "shader-f16")
        return requestDevice.call(this, {...wanted, requiredFeatures})
    }
    const widen = (type, method, change) => {
        const original = type.prototype[method]
        type.prototype[method] = function (...given) {
            return original.apply(this, lacks ? change(...given) : given)
        }
    }
    const READ = GPUBufferUsage.MAP_READ
    widen(GPUDevice, "createShaderModule", wanted => [
        {...wanted, code: wanted.code.replace("enable f16;", "").replace(/\bf16\b/g, "f32")},
    ])
    widen(GPUDevice, "createBuffer", wanted => [
        {...wanted, size: wanted.size * (wanted.usage & (GPUBufferUsage.STORAGE | READ) ? 2 : 1)},
    ])
    widen(GPUCommandEncoder, "copyBufferToBuffer", (from, start, to, place, size) => [
        from, start, to, place, size * (to.usage & READ ? 2 : 1),
    ])
    widen(GPUBuffer, "mapAsync", mode => [mode])
    const getMappedRange = GPUBuffer.prototype.getMappedRange
    GPUBuffer.prototype.getMappedRange = function (...range) {
        if (!lacks || !(this.usage & READ)) return getMappedRange.apply(this, range)
        return Float16Array.from(new Float32Array(getMappedRange.call(this))).buffer
    }
}
