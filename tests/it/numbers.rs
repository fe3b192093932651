//! Numbers that overflow in a network.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};

use crate::support::{binary, copy_of_tiny};

/// Makes numbers in the VAE larger than f16 can hold. Its norms bring finite numbers back into range.
fn swell(model: &Path) {
    let file = model.join("vae/diffusion_pytorch_model.safetensors");
    let mut tensors: HashMap<String, Tensor> = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        *tensor = tensor.to_dtype(DType::F32).unwrap();
        if name.contains("coder.conv_in") {
            *tensor = (&*tensor * 1e6).unwrap();
        }
    }
    candle_core::safetensors::save(&tensors, file).unwrap();
}

#[test]
fn a_vae_that_overflows_in_less_memory_is_used_in_f32() {
    let (model, out) = (copy_of_tiny(), tempfile::tempdir().unwrap());
    swell(model.path());
    let picture = |dtype: &str, more: &[&str]| {
        let file = out.path().join(format!("{dtype}.png"));
        let args = ["generate", "a fox", "--seed", "1", "--steps", "2", "--dtype", dtype, "--model"];
        let output = binary().args(args).arg(model.path()).arg("-o").arg(&file).args(more).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        (image::open(file).unwrap().to_rgb8(), stderr)
    };
    // The other networks' weights are f16 in both runs.
    for (more, said) in
        [(&[][..], &["decoded"][..]), (&["--init-image", "tests/parity/picture.png", "--strength", "0.5"], &["encoded", "decoded"])]
    {
        let ((wide, quiet), (narrow, stderr)) = (picture("f32", more), picture("f16", more));
        assert!(wide == narrow, "{more:?}");
        assert!(!quiet.contains("again in f32"));
        for word in said {
            assert!(stderr.contains(&format!("{word} again in f32: its numbers overflowed in f16")), "{stderr}");
        }
    }
}
