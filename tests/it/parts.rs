//! Parts of a model from elsewhere: another VAE or text encoder, or everything that a checkpoint with the UNet alone lacks.

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::Tensor;
use sd_worker::backend::{self, InferencePipeline, LoadError, LoadOptions, ModelFiles};

use crate::{
    made_up,
    single_file::{Tensors, checkpoint, load, numbers, warnings, with_what_else_there_is, write},
    support::binary,
};

/// A model with one part from elsewhere, as on the command line.
fn with_part(model: &Path, part: &'static str, path: &Path) -> Result<Arc<InferencePipeline>, LoadError> {
    with_parts(model, &[(part, path)])
}

#[test]
fn a_vae_may_come_from_another_place() {
    let (directory, other) = (made_up::model("sd1"), made_up::model("sd1"));
    let own = numbers(&load(directory.path()).unwrap());
    let file = directory.path().join("model.safetensors");
    let parts = checkpoint("sd1").into_iter().partition::<Tensors, _>(|(name, _)| name.starts_with("first_stage_model."));
    let (vae, rest) = parts;
    write(&file, &rest, &[]);
    let changed = |tensors: &Tensors| tensors.iter().map(|(name, tensor)| (name.clone(), (tensor * 0.9).unwrap())).collect::<Tensors>();
    let name = "diffusion_pytorch_model.safetensors";
    candle_core::safetensors::save(&changed(&made_up::tensors("sd1")["vae"]), other.path().join("vae").join(name)).unwrap();
    let alone = directory.path().join("vae.safetensors");
    write(&alone, &changed(&vae).into_iter().map(|(name, tensor)| (name.replace("first_stage_model.", ""), tensor)).collect(), &[]);
    let inside = directory.path().join("other.safetensors");
    write(&inside, &rest.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).chain(changed(&vae)).collect(), &[]);

    // A whole model, its part's folder, the part's weights, a VAE file and a whole checkpoint; for a model with a VAE and for one without.
    let places = [other.path().to_owned(), other.path().join("vae"), other.path().join("vae").join(name), alone, inside];
    let right = numbers(&with_part(directory.path(), "vae", &places[0]).unwrap());
    assert!(right.0 == own.0 && right.1 != own.1);
    for (model, place) in [directory.path(), &file].into_iter().flat_map(|model| places.iter().map(move |place| (model, place))) {
        assert!(numbers(&with_part(model, "vae", place).unwrap()) == right, "{} with {}", model.display(), place.display());
    }
    let error = |place: &str| with_part(directory.path(), "vae", Path::new(place)).map(drop).unwrap_err().to_string();
    assert!(error("/no/such").contains("there is no VAE /no/such"), "{}", error("/no/such"));
    assert!(error("x.ckpt").contains("pickled weights are not read"));
    let decoder = vae.into_iter().filter(|(name, _)| !name.contains("encoder")).collect();
    write(&directory.path().join("decoder.safetensors"), &decoder, &[]);
    let without_encoder = error(directory.path().join("decoder.safetensors").to_str().unwrap());
    assert!(without_encoder.contains("the decoder of a VAE alone"), "{without_encoder}");
    let clip = other.path().join("text_encoder/model.safetensors");
    assert!(error(clip.to_str().unwrap()).contains("its tensors are those of no vae that is known here"));
}

#[test]
fn a_text_encoder_may_come_from_another_place() {
    let (directory, other) = (made_up::model("sd1"), made_up::model("sdxl"));
    let own = numbers(&load(directory.path()).unwrap());
    let file = directory.path().join("model.safetensors");
    write(&file, &checkpoint("sd1"), &[]);
    // The same shapes with other numbers.
    let weights = other.path().join("text_encoder/model.safetensors");
    let changed: Tensors = made_up::tensors("sdxl")["text_encoder"]
        .iter()
        .map(|(name, tensor)| (format!("text_model.{name}"), (tensor * 0.9).unwrap()))
        .collect();
    candle_core::safetensors::save(&changed, &weights).unwrap();
    let right = numbers(&with_part(directory.path(), "text_encoder", other.path()).unwrap());
    assert!(right != own);
    for model in [directory.path(), &file] {
        for place in [other.path().join("text_encoder"), weights.clone()] {
            assert!(numbers(&with_part(model, "text_encoder", &place).unwrap()) == right, "{}", place.display());
        }
    }
}

#[test]
fn parts_are_given_on_the_command_line() {
    let (directory, out) = (made_up::model("sd1"), tempfile::tempdir().unwrap());
    let picture = |args: &[&str]| {
        let file = out.path().join("x.png");
        let mut command = binary();
        command.args(["generate", "a", "--steps", "1", "--seed", "1", "--width", "64", "--height", "64", "--model"]).arg(directory.path());
        let output = command.args(args).arg("-o").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        image::open(file).unwrap().into_rgb8().into_raw()
    };
    let (vae, text) = (directory.path().join("vae.safetensors"), directory.path().join("text.safetensors"));
    let changed = |part: &str| {
        made_up::tensors("sd1")[part].iter().map(|(name, tensor)| (name.clone(), (tensor * 0.9).unwrap())).collect::<Tensors>()
    };
    candle_core::safetensors::save(&changed("vae"), &vae).unwrap();
    candle_core::safetensors::save(&changed("text_encoder"), &text).unwrap();
    let plain = picture(&[]);
    assert_ne!(picture(&["--vae", vae.to_str().unwrap()]), plain);
    assert_ne!(picture(&["--text-encoder", text.to_str().unwrap()]), plain);
}

/// A VAE file with tensors of its training, for a checkpoint that has every part: there is no warning.
#[test]
fn what_has_been_replaced_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let [model, vae] = ["model.safetensors", "vae.safetensors"].map(|name| folder.path().join(name));
    let mut whole = with_what_else_there_is("sd1", checkpoint("sd1"));
    // `ComfyUI` writes these beside 8-bit weights.
    for name in ["scaled_fp8", "model.diffusion_model.out.2.scale_input", "model.diffusion_model.out.2.comfy_quant"] {
        whole.insert(name.to_owned(), made_up::made_up("", &[1]));
    }
    write(&model, &whole, &[]);
    let mut tensors: Tensors = checkpoint("sd1").into_iter().filter(|(name, _)| name.starts_with("first_stage_model.")).collect();
    tensors.insert("first_stage_model.loss.logvar".to_owned(), made_up::made_up("", &[1]));
    let named = |prefix: &str| tensors.iter().map(|(name, tensor)| (name.replace("first_stage_model.", prefix), tensor.clone())).collect();
    for prefix in ["", "first_stage_model."] {
        write(&vae, &named(prefix), &[]);
        let log = warnings(&model, &["--vae", vae.to_str().unwrap()]);
        assert!(!log.contains("were not read"), "{log}");
    }
}

fn with_parts(model: &Path, parts: &[(&'static str, &Path)]) -> Result<Arc<InferencePipeline>, LoadError> {
    let files = ModelFiles::open(model.to_str().unwrap())?;
    let files = parts.iter().try_fold(files, |files, (part, path)| files.with_part(part, path))?;
    backend::load(&files, &LoadOptions::default()).map(Arc::new)
}

/// A UNet with the other parts given equals the whole model: from its directory, from single files, and from one file.
#[test]
fn a_checkpoint_with_the_unet_alone_takes_the_rest_from_elsewhere() {
    for model in ["sd1", "sd2", "sdxl"] {
        let directory = made_up::model(model);
        let inside = |name: &str| directory.path().join(name);
        let right = numbers(&load(directory.path()).unwrap());
        let (whole, alone) = (inside("whole.safetensors"), inside("alone.safetensors"));
        write(&whole, &with_what_else_there_is(model, checkpoint(model)), &[]);
        let unet = checkpoint(model).into_iter().filter(|(name, _)| name.starts_with("model.diffusion_model.")).collect();
        write(&alone, &unet, &[]);
        let parts = &["vae", "text_encoder", "text_encoder_2"][..if model == "sdxl" { 3 } else { 2 }];
        for place in 0..3 {
            let path = |part: &str| match (place, part) {
                (0, _) => directory.path().to_owned(),
                (1, "vae") => inside("vae/diffusion_pytorch_model.safetensors"),
                (1, _) => inside(part).join("model.safetensors"),
                _ => whole.clone(),
            };
            let paths: Vec<_> = parts.iter().map(|part| (*part, path(part))).collect();
            let given: Vec<_> = paths.iter().map(|(part, path)| (*part, path.as_path())).collect();
            assert!(numbers(&with_parts(&alone, &given).unwrap()) == right, "{model} {place}");
            // A part that is not given is named, with its option.
            let error = with_parts(&alone, &given[1..]).map(drop).unwrap_err().to_string();
            assert!(error.ends_with("alone.safetensors: this checkpoint has no VAE; give one with --vae"), "{error}");
        }
        let error = load(&alone).map(drop).unwrap_err().to_string();
        let missing = if model == "sdxl" {
            "no VAE and no text encoder and no second text encoder; give them with --vae and --text-encoder and --text-encoder-2"
        } else {
            "no VAE and no text encoder; give them with --vae and --text-encoder"
        };
        assert!(error.ends_with(&format!("alone.safetensors: this checkpoint has {missing}")), "{error}");
    }
}

#[test]
fn the_second_text_encoder_may_come_from_another_place() {
    let (directory, other) = (made_up::model("sdxl"), made_up::model("sdxl"));
    let own = numbers(&load(directory.path()).unwrap());
    let file = directory.path().join("model.safetensors");
    write(&file, &checkpoint("sdxl"), &[]);
    let changed = |tensors: Tensors| tensors.into_iter().map(|(name, tensor)| (name, (tensor * 0.9).unwrap())).collect::<Tensors>();
    let weights = other.path().join("text_encoder_2/model.safetensors");
    candle_core::safetensors::save(&changed(made_up::tensors("sdxl").remove("text_encoder_2").unwrap()), &weights).unwrap();
    let is_second = |name: &String| name.starts_with("conditioner.embedders.1.model.");
    let whole = other.path().join("whole.safetensors");
    write(&whole, &changed(checkpoint("sdxl")), &[]);
    let alone = other.path().join("open_clip.safetensors");
    let second = changed(checkpoint("sdxl")).into_iter().filter(|(name, _)| is_second(name));
    write(&alone, &second.map(|(name, tensor)| (name.replace("conditioner.embedders.1.model.", ""), tensor)).collect(), &[]);

    let right = numbers(&with_part(directory.path(), "text_encoder_2", other.path()).unwrap());
    assert!(right != own);
    for model in [directory.path(), &file] {
        for place in [&other.path().join("text_encoder_2"), &weights, &whole, &alone] {
            assert!(numbers(&with_part(model, "text_encoder_2", place).unwrap()) == right, "{}", place.display());
        }
    }
    let error = with_part(made_up::model("sd1").path(), "text_encoder_2", other.path()).map(drop).unwrap_err().to_string();
    assert_eq!(error, "--text-encoder-2 is for SDXL: this model has one text encoder");
    let error = with_part(directory.path(), "text_encoder_2", Path::new("/no/such")).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("there is no second text encoder /no/such"), "{error}");
}

/// As in diffusers: the averaged weights are ignored, with a warning.
#[test]
fn averaged_weights_are_left_out() {
    let directory = made_up::model("sd1");
    let file = directory.path().join("model.safetensors");
    let mut tensors = checkpoint("sd1");
    let averages: HashMap<String, Tensor> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("model.")?.replace('.', ""), (tensor * 0.5).unwrap())))
        .map(|(name, tensor)| (format!("model_ema.{name}"), tensor))
        .collect();
    tensors.extend(["decay", "num_updates"].map(|name| (format!("model_ema.{name}"), made_up::made_up("", &[1]))));
    write(&file, &tensors, &[]);
    assert!(!warnings(&file, &[]).contains("averaged"));
    let count = averages.len() + 2;
    tensors.extend(averages);
    write(&file, &tensors, &[]);
    assert!(numbers(&load(&file).unwrap()) == numbers(&load(directory.path()).unwrap()));
    let log = warnings(&file, &[]);
    assert!(log.contains(&format!("model.safetensors: its {count} averaged weights (model_ema.*) are left out")), "{log}");
    assert!(!log.contains("were not read"), "{log}");
}
