//! The same numbers as spandrel's for networks that enlarge pictures, in every published layout. `tests/parity/make_upscaler_goldens.py` makes
//! the goldens.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use image::RgbImage;
use sd_worker::{
    backend::{Interrupt, LoadError, UpscalerLibrary},
    common::{NamedPath, error_chain},
    models::StripBytes,
};
use serde::Deserialize;

use crate::{
    made_up,
    parity::relative_error,
    single_file::{Tensors, write},
};

/// What is kept of a network.
#[derive(Deserialize)]
pub(crate) struct Network {
    pub(crate) scale: usize,
    tensors: BTreeMap<String, Vec<usize>>,
}

pub(crate) fn networks() -> BTreeMap<String, Network> {
    serde_json::from_slice(&fs::read("tests/parity/upscalers.json").unwrap()).unwrap()
}

/// The tensors of a network.
pub(crate) fn tensors(name: &str) -> Tensors {
    let tensor = |(tensor, shape): (&String, &Vec<usize>)| {
        let values = made_up::made_up(&format!("{name}/{tensor}"), shape);
        let is_slope = shape.len() == 1 && tensor.ends_with("weight");
        (tensor.clone(), if is_slope { (values - 0.8).unwrap() } else { values })
    };
    networks()[name].tensors.iter().map(tensor).collect()
}

/// The file of a network in a folder.
pub(crate) fn file(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(name).with_extension("safetensors");
    write(&file, &tensors(name), &[]);
    file
}

pub(crate) fn open(file: &Path) -> Result<UpscalerLibrary, LoadError> {
    UpscalerLibrary::open(&[NamedPath { name: "x".to_owned(), path: file.to_owned() }], &Device::Cpu, 1 << 20)
}

/// What a network makes of a picture, in [0, 1] and not clamped, worked out in strips of about so many bytes, and how many there are.
pub(crate) fn floats(library: &UpscalerLibrary, picture: &RgbImage, strip: StripBytes) -> (Tensor, usize) {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let values: Vec<f32> = picture.as_raw().iter().map(|value| f32::from(*value) / 255.0).collect();
    let input = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu).unwrap().permute((0, 3, 1, 2)).unwrap();
    let (network, mut parts) = (library.entries().next().unwrap().network().unwrap(), Vec::new());
    let keep = |part: Tensor| {
        parts.push(part.contiguous()?);
        Ok(())
    };
    network.forward(&input, strip, Interrupt::NEVER, keep).unwrap();
    (Tensor::cat(&parts, 2).unwrap(), parts.len())
}

#[test]
fn every_layout_makes_the_numbers_of_spandrel() {
    let goldens = candle_core::safetensors::load("tests/parity/upscalers.safetensors", &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, network) in networks() {
        let library = open(&file(folder.path(), &name)).unwrap();
        let entry = library.entries().next().unwrap();
        assert_eq!(entry.scale(), network.scale, "{name}");
        let (width, height) = if network.scale == 8 { (5, 5) } else { (9, 7) };
        let picture = made_up::control_picture("upscaler", width, height);
        let (ours, _) = floats(&library, &picture, StripBytes::default());
        let error = relative_error(&ours, &goldens[&name]);
        assert!(error < 1e-4, "{name}: off by {error}");

        let right = goldens[&name].get(0).unwrap().permute((1, 2, 0)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let chosen = library.choose("scale", library.find("upscaler", None).unwrap(), None, (width, height)).unwrap();
        let pixels = chosen.enlarge(&picture, Interrupt::NEVER).unwrap();
        assert_eq!(pixels.dimensions(), (width * network.scale as u32, height * network.scale as u32));
        let far =
            pixels.iter().zip(&right).map(|(ours, right)| (f32::from(*ours) - right.clamp(0.0, 1.0) * 255.0).abs()).fold(0.0, f32::max);
        assert!(far <= 1.0, "{name}: a pixel is off by {far}");
    }
    assert_eq!(goldens.len(), networks().len() + 1, "that of the binary has a test of its own");
}

/// Strips are as low as one row, and see all rows that they depend on.
#[test]
fn a_picture_in_strips_is_the_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["esrgan-x4", "esrgan-plus-x4", "real-esrgan-x2", "esrgan-x1", "esrgan-x8", "compact-x4"] {
        let library = open(&file(folder.path(), name)).unwrap();
        let picture = made_up::control_picture("upscaler", 22, 45);
        let (whole, count) = floats(&library, &picture, StripBytes::default());
        assert_eq!(count, 1);
        for (strip, least) in [(1, 22), (1 << 14, 2)] {
            let (cut, count) = floats(&library, &picture, StripBytes(strip));
            assert!(count >= least, "{name}: {count} strips");
            let error = relative_error(&cut, &whole);
            assert!(error < 1e-5, "{name} in {count} strips: off by {error}");
        }
    }
}

/// The smallest pictures have less than networks pad to.
#[test]
fn pictures_of_any_size_are_enlarged() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["esrgan-x4", "real-esrgan-x2", "real-esrgan-x1", "compact-x2"] {
        let library = open(&file(folder.path(), name)).unwrap();
        let scale = networks()[name].scale as u32;
        for (width, height) in [(1, 1), (1, 6), (5, 2), (3, 4)] {
            let chosen = library.choose("scale", library.find("upscaler", Some("x")).unwrap(), None, (width, height)).unwrap();
            let made = chosen.enlarge(&made_up::control_picture("upscaler", width, height), Interrupt::NEVER).unwrap();
            assert_eq!(made.dimensions(), (width * scale, height * scale), "{name}");
        }
    }
}

#[test]
fn what_training_scripts_put_before_names_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let picture = made_up::control_picture("upscaler", 9, 7);
    for (name, prefix) in [("real-esrgan-x4", "params_ema."), ("esrgan-x4", "module."), ("compact-x4", "netG.")] {
        let path = file(folder.path(), name);
        let right = floats(&open(&path).unwrap(), &picture, StripBytes::default()).0;
        let renamed = tensors(name).into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
        write(&path, &renamed, &[]);
        let found = floats(&open(&path).unwrap(), &picture, StripBytes::default()).0;
        assert_eq!(relative_error(&found, &right).to_bits(), 0f32.to_bits());
    }
}

#[test]
fn filters_and_networks_come_to_every_size() {
    let folder = tempfile::tempdir().unwrap();
    let library = open(&file(folder.path(), "esrgan-x4")).unwrap();
    let picture = made_up::control_picture("upscaler", 12, 10);
    for (name, scale, size) in [
        ("x", Some(2.0), (24, 20)),
        ("x", Some(5.5), (66, 55)),
        ("x", None, (48, 40)),
        ("lanczos", Some(1.0), (12, 10)),
        ("Lanczos", None, (24, 20)),
        ("NEAREST", Some(3.0), (36, 30)),
    ] {
        let upscaler = library.find("upscaler", Some(name)).unwrap();
        let chosen = library.choose("scale", upscaler, scale.map(|scale: f64| scale.try_into().unwrap()), (12, 10)).unwrap();
        let made = chosen.enlarge(&picture, Interrupt::NEVER).unwrap();
        assert_eq!((made.dimensions(), chosen.size), (size, size), "{name}");
        match name {
            "NEAREST" => assert!(made.enumerate_pixels().all(|(x, y, pixel)| pixel == picture.get_pixel(x / 3, y / 3))),
            "lanczos" => assert!(made == picture),
            _ => {}
        }
    }
    let names: Vec<_> = library.names().collect();
    assert_eq!(names, [("x", Some(4)), ("Lanczos", None), ("Nearest", None)]);
}

#[test]
fn work_that_nobody_waits_for_ends() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["esrgan-x4", "compact-x4"] {
        let library = open(&file(folder.path(), name)).unwrap();
        let chosen = library.choose("scale", library.find("upscaler", None).unwrap(), None, (9, 7)).unwrap();
        let is_unwanted = || true;
        let error = chosen.enlarge(&made_up::control_picture("upscaler", 9, 7), Interrupt::when(&is_unwanted)).unwrap_err();
        assert!(error_chain(&error).contains("interrupted"), "{}", error_chain(&error));
    }
}

/// The error of a file with other tensors.
fn refusal(folder: &Path, tensors: &Tensors) -> String {
    let file = folder.join("x.safetensors");
    write(&file, tensors, &[]);
    error_chain(&open(&file).map(drop).unwrap_err())
}

#[test]
fn what_is_no_such_network_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors(name);
        change(&mut tensors);
        refusal(folder.path(), &tensors)
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    for (error, reason) in [
        (
            changed("esrgan-x4", &|tensors| drop(tensors.remove("model.1.sub.1.RDB2.conv3.0.bias"))),
            "1 are missing: model.1.sub.1.RDB2.conv3.0.bias",
        ),
        (changed("bsrgan-x4", &|tensors| drop(tensors.remove("HRconv.weight"))), "1 are missing: HRconv.weight"),
        (changed("real-esrgan-x2", &|tensors| drop(tensors.remove("conv_first.weight"))), "this is no ESRGAN"),
        (
            changed("compact-x4", &|tensors| drop(tensors.insert("body.1.weight".to_owned(), zeros(&[8])))),
            "body.1.weight is [8] and should be [16]",
        ),
        (
            changed("real-esrgan-x4", &|tensors| drop(tensors.insert("conv_first.weight".to_owned(), zeros(&[16, 4, 3, 3])))),
            "its first convolution takes 4 channels; only pictures of 3 channels are supported",
        ),
        (
            changed("real-esrgan-x4", &|tensors| drop(tensors.insert("conv_last.weight".to_owned(), zeros(&[1, 16, 3, 3])))),
            "only networks for pictures of 3 channels are supported, not of 1",
        ),
        (
            changed("esrgan-x2", &|tensors| drop(tensors.insert("model.0.weight".to_owned(), zeros(&[16, 48, 3, 3])))),
            "it makes a picture smaller: by 4, and then larger by 2",
        ),
        (changed("compact-x4", &|tensors| drop(tensors.insert("body.8.weight".to_owned(), zeros(&[50, 16, 3, 3])))), "gives 50 channels"),
        (
            changed("compact-x4", &|tensors| drop(tensors.insert("body.9.weight".to_owned(), zeros(&[16])))),
            "has the number 9, which should be even",
        ),
        (
            changed("esrgan-x4", &|tensors| drop(tensors.insert("model.1.sub.99999999999.weight".to_owned(), zeros(&[1])))),
            "at most 1000 are supported",
        ),
        (refusal(folder.path(), &made_up::network_tensors("tiny-vae")), "this is no ESRGAN, Real-ESRGAN or compact Real-ESRGAN network"),
    ] {
        assert!(error.contains(reason) && error.contains("x.safetensors"), "{error}\nlacks {reason}");
    }

    let path = file(folder.path(), "compact-x4");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 7, 200, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = error_chain(&open(&path).map(drop).unwrap_err());
        assert!(error.contains("is no whole safetensors file"), "{length}: {error}");
    }
    fs::write(folder.path().join("x.pth"), b"PK\x03\x04").unwrap();
    let error = error_chain(&open(&folder.path().join("x.pth")).map(drop).unwrap_err());
    assert!(error.contains("safetensors"), "{error}");
    let error = error_chain(&open(&folder.path().join("none")).map(drop).unwrap_err());
    assert!(error.contains("there is no upscaler"), "{error}");
}

#[test]
fn numbers_that_are_none_are_no_picture() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = tensors("compact-x4");
    for name in ["body.0.weight", "body.8.weight"] {
        let large = tensors[name].affine(1e30, 0.0).unwrap();
        tensors.insert(name.to_owned(), large);
    }
    let file = folder.path().join("x.safetensors");
    write(&file, &tensors, &[]);
    let library = open(&file).unwrap();
    let chosen = library.choose("scale", library.find("upscaler", None).unwrap(), None, (9, 7)).unwrap();
    let error = chosen.enlarge(&made_up::control_picture("upscaler", 9, 7), Interrupt::NEVER).unwrap_err();
    assert!(error_chain(&error).contains("\"x\" made values that are not numbers (NaN)"), "{}", error_chain(&error));
}

#[test]
fn what_is_too_large_and_names_that_are_taken_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "esrgan-x4");
    let library = open(&path).unwrap();
    let choose = |name: &str, scale: f64, size| {
        let upscaler = library.find("upscaler", Some(name)).unwrap();
        library.choose("scale", upscaler, Some(scale.try_into().unwrap()), size).map(drop).map_err(|error| error.to_string())
    };
    assert!(choose("x", 4.0, (1024, 1024)).is_ok() && choose("lanczos", 1.5, (2000, 2000)).is_ok());
    let error = choose("lanczos", 2.0, (2049, 8)).unwrap_err();
    assert_eq!(error, "must be such that no side of the result has more than 4096 pixels, not 2049x8 to 4098x16");
    let error = choose("x", 1.0, (1025, 1024)).unwrap_err();
    assert!(error.contains("for a picture of at most 1048576 pixels with \"x\""), "{error}");
    let error = library.find("upscaler", Some("y")).unwrap_err().to_string();
    assert_eq!(error, "must be one of \"x\", \"Lanczos\", \"Nearest\", not \"y\"");

    let named = |name: &str| NamedPath { name: name.to_owned(), path: path.clone() };
    for (names, reason) in [(vec!["x", "x"], "--upscaler x is given twice"), (vec!["lanczos"], "--upscaler lanczos is always there")] {
        let networks: Vec<NamedPath> = names.into_iter().map(named).collect();
        let error = UpscalerLibrary::open(&networks, &Device::Cpu, 1).map(drop).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
