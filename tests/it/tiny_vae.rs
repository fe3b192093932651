//! The same numbers as diffusers' for the decoder of a tiny autoencoder, in every layout of its files. `tests/parity/make_tiny_vae_goldens.py`
//! makes the goldens.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{self, Generation, GenerationRequest, InferencePipeline, Interrupt, LoadError, LoadOptions, ModelFiles, Order, Pipeline},
    common::{Decoder, Sampler, SamplingConfig, SamplingOptions, Schedule},
};

use crate::{
    made_up,
    parity::{NETWORK_LIMIT, largest_pixel_error, relative_error},
    single_file::{Tensors, write},
    support::edit,
};

pub(crate) fn goldens() -> Tensors {
    candle_core::safetensors::load("tests/parity/tiny_vaes.safetensors", &Device::Cpu).unwrap()
}

/// The model that the goldens are of.
pub(crate) fn model() -> tempfile::TempDir {
    let folder = made_up::model("sd1");
    edit(&folder.path().join("scheduler/scheduler_config.json"), |json| json["prediction_type"] = "v_prediction".into());
    folder
}

/// The decoder alone, in the names in which TAESD is published.
pub(crate) fn published(net: &str) -> Tensors {
    let renamed = |(name, tensor): (String, Tensor)| {
        let (layer, rest) = name.strip_prefix("decoder.layers.")?.split_once('.')?;
        Some((format!("{}.{rest}", layer.parse::<usize>().unwrap() + 1), tensor))
    };
    made_up::network_tensors(net).into_iter().filter_map(renamed).collect()
}

fn load(model: &Path, tiny_vae: &Path) -> Result<Arc<InferencePipeline>, LoadError> {
    let options = LoadOptions { tiny_vae: Some(tiny_vae.to_owned()), ..LoadOptions::default() };
    Ok(Arc::new(backend::load(&ModelFiles::open(model.to_str().unwrap())?, &options)?))
}

#[test]
fn pictures_of_latents_agree_with_diffusers() {
    let (goldens, model, folder) = (goldens(), model(), tempfile::tempdir().unwrap());
    let directories = ["tiny-vae", "tiny-vae-scaled"].map(|net| (net, made_up::network(net)));
    let [file, decoder, beside] =
        ["x.safetensors", "decoder.safetensors", "taesd_decoder.safetensors"].map(|name| folder.path().join(name));
    write(&file, &made_up::network_tensors("tiny-vae"), &[]);
    write(&decoder, &published("tiny-vae"), &[]);
    write(&beside, &published("tiny-vae"), &[]);
    let mut places: Vec<(&str, PathBuf)> = directories.iter().map(|(net, folder)| (*net, folder.path().to_owned())).collect();
    places.extend([file, decoder, beside, folder.path().to_owned()].map(|path| ("tiny-vae", path)));
    let mut worst = 0f32;
    for (net, place) in places {
        let pipeline = load(model.path(), &place).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
        let vae = pipeline.networks().tiny_vae.as_ref().unwrap();
        for (name, shape) in [("square", [1, 4, 8, 8]), ("wide", [2, 4, 5, 11])] {
            let latents = (made_up::made_up("latents", &shape) * 2.0).unwrap();
            let error = relative_error(&vae.decode(&latents, Interrupt::NEVER).unwrap(), &goldens[&format!("{net}.{name}")]);
            assert!(error < NETWORK_LIMIT, "{}, {name}: off by {error}", place.display());
            worst = worst.max(error);
        }
    }
    println!("largest error: {worst:.1e}");
}

/// Once nothing is left to denoise, the preview is the picture.
#[test]
fn previews_are_its_pictures() {
    let (model, network) = (model(), made_up::network("tiny-vae"));
    let pipeline = load(model.path(), network.path()).unwrap();
    let config = SamplingConfig {
        size: "72x64".parse().unwrap(),
        steps: 4.try_into().unwrap(),
        guidance_scale: 5.0.try_into().unwrap(),
        seed: 7.into(),
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        options: SamplingOptions::default(),
    };
    let order = Order::of("a fox on a blue background", "", config, pipeline.info()).unwrap();
    let request = GenerationRequest::unheard(Order { decoder: Decoder::Tiny, ..order });
    let mut generation = pipeline.begin(&request, Interrupt::NEVER).unwrap();
    let mut previews = vec![generation.preview(Interrupt::NEVER).unwrap()];
    for _ in 0..4 {
        generation.step().unwrap();
        previews.push(generation.preview(Interrupt::NEVER).unwrap());
    }
    assert!(generation.preview(Interrupt::when(&|| true)).is_err());
    let golden = &goldens()["tiny-vae.image"];
    assert!(largest_pixel_error(previews.last().unwrap(), golden) <= 2 && largest_pixel_error(&previews[0], golden) > 2);
    assert!(largest_pixel_error(&generation.finish(Interrupt::NEVER).unwrap(), golden) <= 2);
}

#[test]
fn what_is_no_such_decoder_is_refused_by_name() {
    let (model, folder) = (made_up::model("sd1"), tempfile::tempdir().unwrap());
    let error = |place: &Path| {
        let error = load(model.path(), place).map(drop).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    let file = folder.path().join("x.safetensors");
    let of = |tensors: &Tensors| {
        write(&file, tensors, &[]);
        error(&file)
    };
    let whole = made_up::network_tensors("tiny-vae");
    let without = |part: &str| -> Tensors {
        whole.iter().filter(|(name, _)| !name.contains(part)).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    };
    let changed = |name: &str, tensor: Tensor| {
        let mut tensors = whole.clone();
        tensors.insert(name.to_owned(), tensor);
        tensors
    };
    let check = |error: String, reason: &str| assert!(error.contains(reason), "{error}");
    check(error(Path::new("/no/such")), "there is no tiny VAE /no/such: a directory or a .safetensors file");
    check(error(&folder.path().join("none")), "there is no tiny VAE");
    check(error(folder.path()), "config.json is missing");
    check(of(&without("layers.13.bias")), "1 are missing: decoder.layers.13.bias");
    check(of(&without("layers.3.conv.2.weight")), "decoder.layers.3.conv.2.weight");
    check(of(&made_up::tensors("sd1")["vae"].clone()), "this is no tiny autoencoder that is known here: its tensors are decoder.");
    let encoder: Tensors = [("0.weight".to_owned(), made_up::made_up("", &[16, 3, 3, 3]))].into();
    check(of(&encoder), "this is the encoder of a tiny autoencoder; its decoder is needed");
    let wide = made_up::made_up("", &[16, 16, 3, 3]);
    check(of(&changed("decoder.layers.0.weight", wide)), "it decodes latents of 16 channels");
    let few: Tensors = published("tiny-vae").into_iter().filter(|(name, _)| !name.starts_with("14.")).collect();
    check(of(&few), "2 are missing: 14.weight, 14.bias");
    let nan = made_up::made_up("", &[16]).affine(f64::NAN, 0.0).unwrap();
    check(of(&changed("decoder.layers.0.bias", nan)), "decoder.layers.0.bias");
    // Cut short, and pickled.
    write(&file, &whole, &[]);
    let bytes = fs::read(&file).unwrap();
    for length in [0, 5, 1000, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).unwrap();
        check(error(&file), "is no whole safetensors file");
    }
    let pickle = folder.path().join("taesd_decoder.pth");
    fs::write(&pickle, &bytes).unwrap();
    check(error(&pickle), "pickled weights are not read");
}

#[test]
fn a_directory_s_configuration_is_read() {
    let model = made_up::model("sd1");
    for (field, value, reason) in [
        ("_class_name", "AutoencoderKL".into(), "its _class_name is \"AutoencoderKL\", and should be AutoencoderTiny"),
        ("act_fn", "silu".into(), "act_fn must be relu"),
        ("latent_channels", 16.into(), "it decodes latents of 16 channels, but the model's have 4"),
        ("num_decoder_blocks", serde_json::json!([1, 1, 1, 1]), "not all weights of its configuration"),
        ("decoder_block_out_channels", serde_json::json!([16, 16, 16]), "num_decoder_blocks has 4 entries"),
    ] {
        let network = made_up::network("tiny-vae");
        edit(&network.path().join("config.json"), |json| json[field] = value);
        let error = load(model.path(), network.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    // What is published for another family beside it is not taken.
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("taesdxl_decoder.safetensors"), &published("tiny-vae"), &[]);
    assert!(load(model.path(), folder.path()).is_err());
    assert!(load(made_up::model("sdxl").path(), folder.path()).is_ok());
}
