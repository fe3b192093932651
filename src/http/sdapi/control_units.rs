//! The units of A1111's extension for `ControlNet`, in `alwayson_scripts`.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    backend::{ImageFile, MAX_CONTROLS},
    common::{ControlScale, ControlSettings, ControlWindow, InvalidValue, Preprocess},
    http::{
        api_error::{self, ApiError},
        fields, uploads,
    },
};

const SCRIPTS: &str = "alwayson_scripts";
const CONTROLNET: &str = "ControlNet";
/// The modes by their numbers. In the last one, the picture says more than the prompt; the second is not known here.
const MODES: [&str; 3] = ["Balanced", "My prompt is more important", "ControlNet is more important"];

/// Control networks, each with its picture.
#[derive(Debug, Default)]
pub(super) struct Units {
    pub(super) settings: Vec<ControlSettings>,
    pub(super) pictures: Vec<ImageFile>,
}

#[derive(Deserialize)]
struct Script<'a> {
    #[serde(borrow)]
    args: Option<&'a RawValue>,
}

/// A unit. Fields for memory and for preprocessors that are not here have no effect.
#[derive(Deserialize)]
struct Unit<'a> {
    enabled: Option<bool>,
    module: Option<String>,
    model: Option<String>,
    #[serde(borrow, alias = "input_image")]
    image: Option<&'a RawValue>,
    weight: Option<ControlScale>,
    guidance_start: Option<f64>,
    guidance_end: Option<f64>,
    control_mode: Option<Mode<'a>>,
}

/// A mode by its number or its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Mode<'a> {
    Number(u8),
    Name(#[serde(borrow)] Cow<'a, str>),
}

/// A picture with a mask of its own.
#[derive(Deserialize)]
struct Pair<'a> {
    #[serde(borrow)]
    image: &'a RawValue,
}

/// Reads the units that are enabled and name a network. One without a picture looks at the picture to begin with, `init`. Also returns the
/// names of what has no effect.
///
/// # Errors
/// Says what is wrong with which unit.
pub(super) fn read(scripts: Option<&RawValue>, init: Option<&[u8]>) -> Result<(Units, Vec<String>), ApiError> {
    let (mut units, mut ignored) = (Units::default(), Vec::new());
    let Some(scripts) = scripts else { return Ok((units, ignored)) };
    let scripts: BTreeMap<Cow<str>, Script> = fields::entry(scripts).map_err(|reason| {
        ApiError::invalid_param(SCRIPTS, &format!("{reason}. It must be an object such as {{\"ControlNet\": {{\"args\": […]}}}}"))
    })?;
    for (name, Script { args }) in &scripts {
        let args = args.map(fields::entries).transpose()?.unwrap_or_default();
        if !name.eq_ignore_ascii_case(CONTROLNET) {
            let does_something = args.iter().any(|arg| !matches!(arg.get(), "false" | "null"));
            ignored.extend(does_something.then(|| format!("{SCRIPTS}.{}", api_error::clip(name))));
            continue;
        }
        for (i, unit) in args.iter().enumerate() {
            let of_unit = |error: ApiError| ApiError::invalid_param(SCRIPTS, &format!("unit {i} of {name}: {}", error.body().message));
            units.add(unit, init, &mut ignored).map_err(of_unit)?;
        }
    }
    Ok((units, ignored))
}

impl Units {
    fn add(&mut self, unit: &RawValue, init: Option<&[u8]>, ignored: &mut Vec<String>) -> Result<(), ApiError> {
        let wrong = |reason: &str| ApiError::invalid_param(SCRIPTS, reason);
        let unit: Unit = fields::entry(unit).map_err(|reason| wrong(&reason))?;
        let model = unit.model.as_deref().map_or("None", without_hash);
        if unit.enabled == Some(false) || model.eq_ignore_ascii_case("none") {
            return Ok(());
        }
        if self.settings.len() == MAX_CONTROLS {
            return Err(wrong(&format!("must have at most {MAX_CONTROLS} units")));
        }
        let bytes = match unit.image.filter(|image| !matches!(image.get(), "null" | "\"\"")) {
            Some(image) => {
                let pair: Option<Pair> = serde_json::from_str(image.get()).ok();
                uploads::from_json(SCRIPTS, pair.map_or(image, |pair| pair.image))?
            }
            None => init.map(<[u8]>::to_vec).ok_or_else(|| wrong("must have an image"))?,
        };
        let mode = unit.control_mode.as_ref().map_or(0, Mode::number);
        ignored.extend((mode == 1).then(|| format!("{SCRIPTS}.{CONTROLNET}.control_mode")));
        let preprocess = unit.module.as_deref().map_or(Ok(Preprocess::None), module)?;
        let window = ControlWindow::new(unit.guidance_start.unwrap_or(0.0), unit.guidance_end.unwrap_or(1.0))?;
        let scale = unit.weight.unwrap_or(ControlScale::ONE);
        self.pictures.push(ImageFile::open(SCRIPTS, bytes)?);
        self.settings.push(ControlSettings { scale, window, guess_mode: mode == 2, preprocess, ..ControlSettings::new(model) });
        Ok(())
    }
}

impl Mode<'_> {
    fn number(&self) -> usize {
        match self {
            Self::Number(number) => usize::from(*number),
            Self::Name(name) => MODES.iter().position(|mode| mode == name).unwrap_or(0),
        }
    }
}

/// A network's name without the hash that A1111 puts behind it: `canny [d14c016b]`.
fn without_hash(title: &str) -> &str {
    title.strip_suffix(']').and_then(|title| title.rsplit_once(" [")).map_or(title, |(name, _)| name)
}

/// A preprocessor by the extension's name for it.
fn module(name: &str) -> Result<Preprocess, InvalidValue> {
    match name.to_ascii_lowercase().as_str() {
        "" | "none" => Ok(Preprocess::None),
        name if name.starts_with("invert") => Ok(Preprocess::Invert),
        name if name.starts_with("tile") => Ok(Preprocess::Tile),
        name => name.parse(),
    }
}
