//! The body of a request for pictures: its settings, and the pictures in it as files.

use super::{
    api_error::ApiError,
    extract::FromFields,
    fields::Fields,
    wire::ImagesRequest,
    wire_controls::{self, WireControls, is_control},
};
use crate::backend::{InitFiles, InputFiles};

/// Settings, and files whose headers have been checked.
pub(super) struct ImagesBody {
    pub(super) request: ImagesRequest,
    pub(super) files: InputFiles,
}

impl ImagesBody {
    /// Reads the fields. `init` is the picture to begin with, and `control_images` are the files of a form, for control networks.
    pub(super) fn new(
        mut fields: Fields,
        control_images: Vec<Vec<u8>>,
        init: impl FnOnce() -> Result<Option<InitFiles>, ApiError>,
    ) -> Result<Self, ApiError> {
        let controls = fields.take(is_control);
        let request = ImagesRequest::from_fields(fields)?;
        let init = init()?;
        let (settings, controls) = wire_controls::read(controls.into_iter().map(|(_, value)| value), control_images)?;
        Ok(Self { request: ImagesRequest { control: WireControls(settings), ..request }, files: InputFiles { init, controls } })
    }
}

impl FromFields for ImagesBody {
    fn from_fields(fields: Fields) -> Result<Self, ApiError> {
        Self::new(fields, Vec::new(), || Ok(None))
    }
}
