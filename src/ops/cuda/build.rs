//! In a build for NVIDIA's GPUs, compiles the kernels for them.

fn main() {
    println!("cargo::rerun-if-changed=src/ops/cuda/build.rs");
    #[cfg(feature = "cuda")]
    if let Err(error) = compile("src/ops/cuda/kernels.cu") {
        println!("cargo::error={error}");
    }
}

/// With the compiler that candle's kernels are compiled with, for the same GPUs.
#[cfg(feature = "cuda")]
fn compile(kernels: &str) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={kernels}");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    let arch = format!("compute_{}", cudaforge::detect_compute_cap()?.base());
    let out = std::path::Path::new(&std::env::var("OUT_DIR")?).join("kernels.ptx");
    let mut nvcc = std::process::Command::new(cudaforge::CudaToolkit::detect()?.nvcc_path);
    nvcc.args(["-ptx", "-std=c++17", "-arch", &arch, "-o"]).arg(out).arg(kernels);
    if nvcc.status()?.success() { Ok(()) } else { Err(format!("{nvcc:?} failed").into()) }
}
