//! What is asked of a ControlNet or a T2I-Adapter, without the picture that it looks at.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// How a control network is used for a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlSettings {
    /// The network's name on this worker.
    pub name: String,
    /// How strongly it counts.
    pub scale: ControlScale,
    /// The steps in which it counts.
    pub window: ControlWindow,
    /// Whether it guides by the picture alone: only the prompt's side of guidance sees it, and it counts less for finer layers.
    pub guess_mode: bool,
    /// What is done to the picture first.
    pub preprocess: Preprocess,
    /// The kind of the picture, for networks that know several.
    pub kind: Option<ControlKind>,
}

impl ControlSettings {
    /// The defaults for a network.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            scale: ControlScale(1.0),
            window: ControlWindow::ALL,
            guess_mode: false,
            preprocess: Preprocess::None,
            kind: None,
        }
    }

    /// A warning if no step of so many is inside of the window.
    #[must_use]
    pub fn window_warning(&self, steps: usize) -> Option<String> {
        let ControlWindow { start, end } = self.window;
        let is_empty = !(0..steps).any(|step| self.window.contains(step, steps));
        is_empty.then(|| format!("control \"{}\" has no effect: none of {steps} steps is between start {start} and end {end}", self.name))
    }
}

/// How strongly a control network or a reference picture counts, 0 to 10: 1 as in training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct ControlScale(f64);

impl ControlScale {
    /// As in training.
    pub const ONE: Self = Self(1.0);
    /// The largest scale.
    pub const MAX: f64 = 10.0;

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for ControlScale {
    type Error = InvalidValue;

    fn try_from(scale: f64) -> Result<Self, InvalidValue> {
        if (0.0..=Self::MAX).contains(&scale) {
            Ok(Self(scale))
        } else {
            Err(InvalidValue::new("scale", scale, format!("a number from 0 to {}", Self::MAX)))
        }
    }
}

/// The shares of the steps at which a control network begins and ends to count, each 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ControlWindow {
    start: f64,
    end: f64,
}

impl ControlWindow {
    /// All steps.
    pub const ALL: Self = Self { start: 0.0, end: 1.0 };

    /// From one share of the steps to another.
    ///
    /// # Errors
    /// When they are no shares, or the second is smaller than the first.
    pub fn new(start: f64, end: f64) -> Result<Self, InvalidValue> {
        if 0.0 <= start && start <= end && end <= 1.0 {
            Ok(Self { start, end })
        } else {
            let allowed = "two numbers from 0 to 1, the second no less than the first";
            Err(InvalidValue::new("start and end", format_args!("{start} and {end}"), allowed))
        }
    }

    /// The share at which it begins.
    #[must_use]
    pub fn start(self) -> f64 {
        self.start
    }

    /// The share at which it ends.
    #[must_use]
    pub fn end(self) -> f64 {
        self.end
    }

    /// Whether step `step` of `steps`, counted from 0, is inside. As in diffusers, the whole step must be.
    #[must_use]
    pub fn contains(self, step: usize, steps: usize) -> bool {
        step as f64 / steps as f64 >= self.start && (step + 1) as f64 / steps as f64 <= self.end
    }
}

/// What is done to a picture before a control network looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Preprocess {
    /// Nothing: it is what the network looks at.
    #[default]
    None,
    /// Its edges, white on black ([Canny](https://doi.org/10.1109/TPAMI.1986.4767851)).
    Canny,
    /// Its colours are inverted: lines on paper become white on black.
    Invert,
    /// Its details are blurred, for networks that add them.
    Tile,
}

impl Preprocess {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Canny, Self::Invert, Self::Tile];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Canny => "canny",
            Self::Invert => "invert",
            Self::Tile => "tile",
        }
    }

    /// The kind of the pictures that it makes, where that is clear.
    #[must_use]
    pub fn kind(self) -> Option<ControlKind> {
        match self {
            Self::Canny => Some(ControlKind::Canny),
            Self::Tile => Some(ControlKind::Tile),
            Self::None | Self::Invert => None,
        }
    }
}

impl FromStr for Preprocess {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|one| one.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| InvalidValue::new("preprocess", format_args!("\"{text}\""), format!("one of {names}")))
    }
}

/// A kind of picture, by the numbers of `ControlNet++`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ControlKind {
    /// A skeleton of a person.
    OpenPose,
    /// Nearer is brighter.
    Depth,
    /// Soft edges, or a drawing.
    Scribble,
    /// Sharp edges or lines.
    Canny,
    /// The directions of surfaces.
    Normal,
    /// What is where.
    Segment,
    /// The picture itself, with more detail.
    Tile,
    /// The picture itself, with a part that is black.
    Repaint,
}

impl ControlKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] =
        [Self::OpenPose, Self::Depth, Self::Scribble, Self::Canny, Self::Normal, Self::Segment, Self::Tile, Self::Repaint];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenPose => "openpose",
            Self::Depth => "depth",
            Self::Scribble => "scribble",
            Self::Canny => "canny",
            Self::Normal => "normal",
            Self::Segment => "segment",
            Self::Tile => "tile",
            Self::Repaint => "repaint",
        }
    }

    /// Other names, those of the detectors that make such pictures.
    fn other_names(self) -> &'static [&'static str] {
        match self {
            Self::Scribble => &["hed", "pidi", "ted", "softedge"],
            Self::Canny => &["lineart", "anime_lineart", "mlsd"],
            Self::Segment => &["segmentation", "seg"],
            Self::Repaint => &["inpaint"],
            Self::OpenPose | Self::Depth | Self::Normal | Self::Tile => &[],
        }
    }
}

impl TryFrom<String> for Preprocess {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl FromStr for ControlKind {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let name = text.to_ascii_lowercase();
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name || kind.other_names().contains(&name.as_str()));
        found.ok_or_else(|| {
            InvalidValue::new("type", format_args!("\"{text}\""), format!("one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

impl TryFrom<String> for ControlKind {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of diffusers' `controlnet_keep`.
    #[test]
    fn only_whole_steps_are_inside_of_a_window() {
        let inside = |start, end, steps| {
            let window = ControlWindow::new(start, end).unwrap();
            (0..steps).filter(|step| window.contains(*step, steps)).collect::<Vec<_>>()
        };
        assert_eq!(inside(0.2, 0.8, 10), [2, 3, 4, 5, 6, 7]);
        assert_eq!(inside(0.0, 1.0, 3), [0, 1, 2]);
        assert_eq!(inside(0.0, 0.5, 3), [0]);
        assert_eq!(inside(0.4, 0.6, 2), [0usize; 0]);
        for (start, end) in [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (f64::NAN, 1.0), (0.0, f64::NAN)] {
            assert!(ControlWindow::new(start, end).is_err(), "{start} {end}");
        }
    }
}
