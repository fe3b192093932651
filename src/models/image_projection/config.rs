//! The kind and the sizes of a projection, which its file tells by the names and shapes of its tensors.

use std::collections::BTreeMap;

use crate::models::{ClipVisionConfig, ConfigError};

/// Width of each head, in every file.
const HEAD_DIM: usize = 64;

/// A tensor by which a kind that is not supported is recognised, and what the kind is.
const UNSUPPORTED: [(&str, &str); 3] = [
    (
        "image_proj.perceiver_resampler.proj_in.weight",
        "an IP-Adapter FaceID Plus, which needs the embedding of a face beside the picture's",
    ),
    ("image_proj.proj.3.weight", "a full IP-Adapter (full-face), which looks at all of the encoder's tokens"),
    ("image_proj.proj.0.weight", "an IP-Adapter FaceID, which needs the embedding of a face in place of the picture's"),
];

/// The kind of a projection, and its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageProjectionConfig {
    /// Its kind.
    pub kind: ImageProjectionKind,
    /// Width of what it reads: the encoder's `projection_dim` for a plain one, its `hidden_size` for Plus.
    pub input_dim: usize,
    /// Number of tokens that it makes of a picture.
    pub tokens: usize,
    /// Their width, which is that of the text that the denoiser looks at.
    pub cross_attention_dim: usize,
}

/// The supported kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageProjectionKind {
    /// A linear layer from the projected embedding of the whole picture.
    Plain,
    /// A resampler, which looks at the encoder's tokens.
    Plus(ResamplerConfig),
}

/// Sizes of a resampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResamplerConfig {
    /// Width of its latents.
    pub hidden_dim: usize,
    /// Heads of each attention, 64 wide.
    pub heads: usize,
    /// Width between the two layers of an MLP.
    pub intermediate_dim: usize,
    /// Number of layers.
    pub depth: usize,
}

impl ResamplerConfig {
    /// Width of all heads together.
    pub(super) fn attention_dim(&self) -> usize {
        self.heads * HEAD_DIM
    }
}

impl ImageProjectionConfig {
    /// The projection whose tensors have these names, which begin with `image_proj.`, and these shapes. Other tensors may be among them.
    /// Tensors that follow from the rest are not looked at: [`ImageProjection::new`](super::ImageProjection::new) finds them.
    ///
    /// # Errors
    /// When they are those of no known kind or of one that is not supported, or a tensor that tells a size is missing or impossible.
    pub fn from_shapes(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self, ConfigError> {
        let shapes = Shapes(shapes);
        let unsupported = UNSUPPORTED.iter().find(|(name, _)| shapes.0.contains_key(*name));
        ConfigError::unless(unsupported.is_none(), || {
            let what = unsupported.map_or("", |(_, what)| what);
            format!("this is {what}; plain and Plus IP-Adapters are supported")
        })?;
        if shapes.0.contains_key("image_proj.proj.weight") {
            return shapes.plain();
        }
        ConfigError::unless(shapes.0.contains_key("image_proj.latents"), || {
            "this is no IP-Adapter of a known kind: it has neither image_proj.proj.weight (plain) nor image_proj.latents (Plus)".to_owned()
        })?;
        shapes.plus()
    }

    /// # Errors
    /// When the projection reads embeddings of another width than this encoder makes.
    pub fn check_encoder(&self, encoder: &ClipVisionConfig) -> Result<(), ConfigError> {
        let (what, found) = match self.kind {
            ImageProjectionKind::Plain => ("projection_dim", encoder.projection_dim),
            ImageProjectionKind::Plus(_) => ("hidden_size", encoder.hidden_size),
        };
        ConfigError::unless(found == self.input_dim, || {
            format!("the IP-Adapter is for an image encoder with a {what} of {}, and this one has {found}", self.input_dim)
        })
    }
}

struct Shapes<'a>(&'a BTreeMap<String, Vec<usize>>);

impl Shapes<'_> {
    fn plain(&self) -> Result<ImageProjectionConfig, ConfigError> {
        let ([outputs, input_dim], [cross_attention_dim]) = (self.of("proj.weight")?, self.of("norm.weight")?);
        ConfigError::unless(outputs.is_multiple_of(cross_attention_dim), || {
            format!(
                "image_proj.proj.weight has {outputs} outputs, which are no tokens of the width {cross_attention_dim} of image_proj.norm"
            )
        })?;
        let tokens = outputs / cross_attention_dim;
        Ok(ImageProjectionConfig { kind: ImageProjectionKind::Plain, input_dim, tokens, cross_attention_dim })
    }

    fn plus(&self) -> Result<ImageProjectionConfig, ConfigError> {
        let [one, tokens, hidden_dim] = self.of("latents")?;
        ConfigError::unless(one == 1, || format!("image_proj.latents has {one} sets of latents, and should have 1"))?;
        let ([_, input_dim], [cross_attention_dim, _]) = (self.of("proj_in.weight")?, self.of("proj_out.weight")?);
        let depth = self.depth()?;
        let ([attention_dim, _], [intermediate_dim, _]) = (self.of("layers.0.0.to_q.weight")?, self.of("layers.0.1.1.weight")?);
        ConfigError::unless(attention_dim.is_multiple_of(HEAD_DIM), || {
            format!("image_proj.layers.0.0.to_q.weight has {attention_dim} outputs, which do not fall into heads of {HEAD_DIM}")
        })?;
        let resampler = ResamplerConfig { hidden_dim, heads: attention_dim / HEAD_DIM, intermediate_dim, depth };
        Ok(ImageProjectionConfig { kind: ImageProjectionKind::Plus(resampler), input_dim, tokens, cross_attention_dim })
    }

    /// Number of layers: one more than the highest number. Any tensor of a layer tells.
    fn depth(&self) -> Result<usize, ConfigError> {
        let numbers = self.0.keys().filter_map(|name| name.strip_prefix("image_proj.layers.")?.split('.').next()?.parse::<usize>().ok());
        let depth = numbers.max().map_or(0, |last| last.saturating_add(1));
        // A layer has eight tensors. Far fewer tell that numbers are left out.
        ConfigError::unless(depth <= self.0.len(), || format!("image_proj.layers.{} is there, and layers before it are not", depth - 1))?;
        Ok(depth)
    }

    /// The shape of a tensor below `image_proj.`.
    fn of<const N: usize>(&self, name: &str) -> Result<[usize; N], ConfigError> {
        let name = format!("image_proj.{name}");
        let shape = self.0.get(&name);
        ConfigError::unless(shape.is_some(), || format!("{name} is missing"))?;
        let shape = shape.map(Vec::as_slice).unwrap_or_default();
        let fixed = <[usize; N]>::try_from(shape).unwrap_or([0; N]);
        ConfigError::unless(!fixed.contains(&0), || {
            format!("{name} is of the shape {shape:?}, and should have {N} dimensions, none of them 0")
        })?;
        Ok(fixed)
    }
}
