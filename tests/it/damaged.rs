//! Damaged single-file checkpoints: what is missing is named, and no other network is loaded in silence.

use std::fs;

use candle_core::{DType, Tensor};
use sd_worker::backend::LoadError;

use crate::{
    made_up,
    single_file::{Tensors, checkpoint, load, numbers, with_what_else_there_is, write},
    support::binary,
};

/// A checkpoint whose tensors can be hidden: their names in the header are replaced by others of the same length.
struct Checkpoint {
    folder: tempfile::TempDir,
    header: Vec<u8>,
    names: Vec<String>,
}

impl Checkpoint {
    fn new(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tensors = with_what_else_there_is(model, checkpoint(model));
        write(&folder.path().join("model.safetensors"), &tensors, &[]);
        let file = fs::read(folder.path().join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut names: Vec<String> = checkpoint(model).into_keys().collect();
        names.sort();
        Self { folder, header: file[8..8 + length].to_vec(), names }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("model.safetensors")
    }

    /// The error of a file without some of its tensors.
    fn without(&self, is_hidden: impl Fn(&str) -> bool) -> String {
        let mut header = String::from_utf8(self.header.clone()).unwrap();
        for (i, name) in self.names.iter().enumerate().filter(|(_, name)| is_hidden(name)) {
            // A name of the same length that no tensor has.
            let hidden = format!("~{i:~<width$}", width = name.len() - 1);
            header = header.replace(&format!("\"{name}\":"), &format!("\"{hidden}\":"));
        }
        self.write_header(header.as_bytes());
        let error = load(&self.path()).map(drop).map_err(|error| chain(&error)).err().unwrap_or_default();
        self.write_header(&self.header);
        error
    }

    fn write_header(&self, header: &[u8]) {
        use std::os::unix::fs::FileExt;
        assert_eq!(header.len(), self.header.len());
        let file = fs::OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(header, 8).unwrap();
    }
}

fn chain(error: &LoadError) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

/// Every tensor in every family, at a stride to save time.
#[test]
fn a_tensor_that_is_missing_is_named() {
    for (model, stride) in [("sd1", 11), ("sd2", 31), ("sdxl", 41)] {
        let checkpoint = Checkpoint::new(model);
        load(&checkpoint.path()).unwrap();
        for name in checkpoint.names.iter().step_by(stride) {
            let error = checkpoint.without(|other| other == name);
            assert!(error.contains("not all weights of") && error.contains(name.as_str()), "{model} without {name}: {error}");
        }
    }
}

/// Tensors that alone identify a part.
#[test]
fn a_part_that_is_missing_is_named() {
    for (model, part, named) in [
        ("sd1", "cond_stage_model.transformer.text_model.encoder.layers.", "encoder.layers.0.layer_norm1.weight"),
        ("sd1", "cond_stage_model.transformer.text_model.encoder.layers.2.", "encoder.layers.2.layer_norm1.weight"),
        ("sd1", "first_stage_model.quant_conv.", "first_stage_model.quant_conv.weight"),
        ("sd1", "first_stage_model.post_quant_conv.", "first_stage_model.post_quant_conv.weight"),
        ("sd1", "first_stage_model.encoder.down.3.", "first_stage_model.encoder.down.3.block.0.norm1.weight"),
        ("sd1", "model.diffusion_model.input_blocks.4.1.", "model.diffusion_model.input_blocks.4.1.norm.weight"),
        ("sd1", "model.diffusion_model.output_blocks.8.1.", "model.diffusion_model.output_blocks.8.1.norm.weight"),
        ("sd1", "model.diffusion_model.middle_block.", "model.diffusion_model.middle_block.1.norm.weight"),
        ("sd1", "model.diffusion_model.output_blocks.2.1.conv.", "model.diffusion_model.output_blocks.2.2.conv.weight"),
        ("sd2", "cond_stage_model.model.transformer.resblocks.", "cond_stage_model.model.transformer.resblocks.0.ln_1.weight"),
        ("sd2", "cond_stage_model.model.transformer.resblocks.2.", "cond_stage_model.model.transformer.resblocks.2.ln_1.weight"),
        (
            "sdxl",
            "conditioner.embedders.1.model.transformer.resblocks.2.",
            "conditioner.embedders.1.model.transformer.resblocks.2.ln_1.weight",
        ),
        ("sdxl", "conditioner.embedders.1.model.text_projection", "conditioner.embedders.1.model.text_projection"),
        ("sdxl", "model.diffusion_model.label_emb.", "model.diffusion_model.label_emb.0.0.weight"),
        ("sdxl", "model.diffusion_model.middle_block.1.transformer_blocks.1.", "middle_block.1.transformer_blocks.1.norm1.weight"),
    ] {
        let error = Checkpoint::new(model).without(|name| name.starts_with(part));
        assert!(error.contains("not all weights of") && error.contains(named), "{model} without {part}: {error}");
    }
}

/// transformers' projections are 1 x 1 convolutions in some files, and linear layers in others.
#[test]
fn a_projection_may_be_a_convolution_or_a_linear_layer() {
    for model in ["sd1", "sd2", "sdxl"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let turned = |(name, tensor): (String, Tensor)| {
            let is_projection = name.ends_with(".proj_in.weight") || name.ends_with(".proj_out.weight");
            let tensor = match tensor.dims() {
                [outputs, inputs] if is_projection => tensor.reshape((*outputs, *inputs, 1, 1)).unwrap(),
                [outputs, inputs, 1, 1] if is_projection => tensor.reshape((*outputs, *inputs)).unwrap(),
                _ => tensor,
            };
            (name, tensor)
        };
        // With the text encoder, and without it, where the UNet alone identifies the family.
        let directory = made_up::model(model);
        write(&file, &checkpoint(model).into_iter().map(turned).collect(), &[]);
        assert!(numbers(&load(&file).unwrap()) == numbers(&load(directory.path()).unwrap()), "{model}");
    }
}

/// A depth of no known variant is another network, not damage.
#[test]
fn a_shape_of_no_known_variant_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let mut tensors = checkpoint("sdxl");
    let deeper = |(name, tensor): (&String, &Tensor)| {
        let name = name.strip_prefix("model.diffusion_model.input_blocks.4.1.transformer_blocks.1.")?;
        Some((format!("model.diffusion_model.input_blocks.4.1.transformer_blocks.2.{name}"), tensor.clone()))
    };
    tensors.extend(tensors.iter().filter_map(deeper).collect::<Vec<_>>());
    write(&file, &tensors, &[]);
    let error = load(&file).map(drop).unwrap_err().to_string();
    assert!(error.contains("input_blocks.4.1, where this one has 3"), "{error}");

    // Half the width.
    let narrow: Tensors = checkpoint("sd1")
        .into_iter()
        .map(|(name, tensor)| {
            let is_conv_in = name == "model.diffusion_model.input_blocks.0.0.weight";
            (name, if is_conv_in { tensor.narrow(0, 0, 16).unwrap() } else { tensor })
        })
        .collect();
    write(&file, &narrow, &[]);
    let error = load(&file).map(drop).unwrap_err().to_string();
    assert!(error.contains("have another shape") && error.contains("[16, 4, 3, 3]"), "{error}");
}

/// Integers without factors are no weights, and neither is NaN: both commands name the tensor, and end with 66.
#[test]
fn weights_that_are_no_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let name = "model.diffusion_model.middle_block.1.proj_in.weight";
    let with = |change: &dyn Fn(&Tensor) -> Tensor| {
        let mut tensors = checkpoint("sd1");
        let changed = change(&tensors[name]);
        tensors.insert(name.to_owned(), changed);
        write(&file, &tensors, &[]);
    };
    with(&|tensor| tensor.to_dtype(DType::I64).unwrap());
    fails(&["--model", file.to_str().unwrap()], &format!("{name} is stored as I64, which is no type of weights"));
    with(&|tensor| tensor.affine(f64::NAN, 0.0).unwrap());
    fails(&["--model", file.to_str().unwrap()], &format!("{name} has a value that is not a number (NaN) or is infinite"));
}

/// Both commands end with 66 and this message.
pub(crate) fn fails(model: &[&str], words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("x.png").to_str().unwrap().to_owned();
    for command in [&["generate", "a", "-o", &picture][..], &["serve", "--port", "0"]] {
        let output = binary().args(command).args(model).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(66), "{command:?}: {log}");
        assert!(log.lines().last().unwrap_or_default().contains(words), "{command:?}: {log}");
    }
}
