//! Networks and pictures that guide, as the command line names them.

use std::{path::PathBuf, str::FromStr};

use super::{ControlScale, ControlSettings, ControlWindow, InvalidValue};

/// A file or a directory under a name: `NAME=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPath {
    /// The name.
    pub name: String,
    /// The path.
    pub path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text.split_once('=') {
            Some((name, path)) if !name.trim().is_empty() && !path.is_empty() => {
                Ok(Self { name: name.trim().to_owned(), path: path.into() })
            }
            _ => Err(InvalidValue::new("path", format_args!("\"{text}\""), "NAME=PATH")),
        }
    }
}

/// A picture for a control network, as the command line has it: `NAME=FILE`, then `,scale=0.8`, `,start=0`, `,end=0.5`, `,guess` and
/// `,preprocess=canny` and `,type=depth` in any order.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlFile {
    /// How the network is used.
    pub settings: ControlSettings,
    /// The file of the picture.
    pub path: PathBuf,
}

/// A picture that the denoiser looks at beside the text, as the command line has it: `FILE` or `FILE,scale=0.6`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceFile {
    /// How strongly it counts.
    pub scale: ControlScale,
    /// The file of the picture.
    pub path: PathBuf,
}

impl FromStr for ReferenceFile {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (path, scale) = match text.rsplit_once(",scale=") {
            Some((path, scale)) => (path, number(scale, "scale")?.try_into()?),
            None => (text, ControlScale::ONE),
        };
        if path.is_empty() {
            return Err(InvalidValue::new("reference", "an empty name", "FILE or FILE,scale=0.6"));
        }
        Ok(Self { scale, path: path.into() })
    }
}

fn number(text: &str, name: &'static str) -> Result<f64, InvalidValue> {
    text.parse().map_err(|_| InvalidValue::new(name, format_args!("\"{text}\""), "a number"))
}

impl FromStr for ControlFile {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let mut rest = text;
        let (mut start, mut end) = (0.0, 1.0);
        let mut settings = ControlSettings::new("");
        // From the end: the name of a file may have commas in it.
        while let Some((before, option)) = rest.rsplit_once(',') {
            match option.split_once('=') {
                Some(("scale", value)) => settings.scale = number(value, "scale")?.try_into()?,
                Some(("start", value)) => start = number(value, "start")?,
                Some(("end", value)) => end = number(value, "end")?,
                Some(("preprocess", value)) => settings.preprocess = value.parse()?,
                Some(("type", value)) => settings.kind = Some(value.parse()?),
                None if option == "guess" => settings.guess_mode = true,
                _ => break,
            }
            rest = before;
        }
        settings.window = ControlWindow::new(start, end)?;
        let NamedPath { name, path } =
            rest.parse().map_err(|_| InvalidValue::new("control", format_args!("\"{text}\""), "NAME=FILE[,scale=0.8][,end=0.5]…"))?;
        settings.name = name;
        Ok(Self { settings, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Preprocess;

    #[test]
    fn a_file_is_asked_for_with_its_options() {
        let read = |text: &str| text.parse::<ControlFile>();
        let plain = read("pose=a,b=c.png").unwrap();
        assert_eq!((plain.settings, plain.path), (ControlSettings::new("pose"), "a,b=c.png".into()));
        let all = read("edges=x.png,scale=0.5,start=0.1,end=0.6,guess,preprocess=canny").unwrap();
        let expected = ControlSettings {
            scale: 0.5.try_into().unwrap(),
            window: ControlWindow::new(0.1, 0.6).unwrap(),
            guess_mode: true,
            preprocess: Preprocess::Canny,
            ..ControlSettings::new("edges")
        };
        assert_eq!((all.settings, all.path), (expected, "x.png".into()));
        let reference = |text: &str| text.parse::<ReferenceFile>();
        assert_eq!(reference("a,b.png").unwrap(), ReferenceFile { scale: ControlScale::ONE, path: "a,b.png".into() });
        assert_eq!(reference("a.png,scale=0.5").unwrap(), ReferenceFile { scale: 0.5.try_into().unwrap(), path: "a.png".into() });
        assert!(reference("").is_err() && reference("a.png,scale=11").is_err() && reference("a.png,scale=x").is_err());
        for (text, reason) in [
            ("x.png", "NAME=FILE"),
            ("a=x.png,scale=11", "a number from 0 to 10"),
            ("a=x.png,scale=x", "a number"),
            ("a=x.png,preprocess=pose", "one of none, canny, invert, tile"),
            ("a=x.png,start=0.9,end=0.1", "the second no less than the first"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
