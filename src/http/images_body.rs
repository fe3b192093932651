//! The body of a request for pictures: its settings, and the pictures in it as files.

use super::{
    api_error::ApiError,
    extract::FromFields,
    fields::Fields,
    order::ImagesOrder,
    uploads,
    wire::ImagesRequest,
    wire_controls::{self, WireControls, is_control},
    wire_references::{self, WireReferences, is_reference},
};
use crate::backend::{InitFiles, InputFiles, ModelInfo};

/// Settings, and files whose headers have been checked.
pub(super) struct ImagesBody {
    pub(super) request: ImagesRequest,
    pub(super) files: InputFiles,
}

/// The files of a form for entries of `control` and `reference` that have no picture in them.
#[derive(Default)]
pub(super) struct FormPictures {
    pub(super) controls: Vec<Vec<u8>>,
    pub(super) references: Vec<Vec<u8>>,
}

impl ImagesBody {
    /// Reads the fields. `init` is the picture to begin with.
    pub(super) fn new(
        mut fields: Fields,
        FormPictures { controls: control_images, references: reference_images }: FormPictures,
        init: impl FnOnce() -> Result<Option<InitFiles>, ApiError>,
    ) -> Result<Self, ApiError> {
        let (controls, references) = (fields.take_one(is_control)?, fields.take_one(is_reference)?);
        let request = ImagesRequest::from_fields(fields)?;
        let init = init()?;
        let (settings, controls) = wire_controls::read(controls, control_images)?;
        let (scales, references) = wire_references::read(references, reference_images)?;
        let request = ImagesRequest { control: Some(WireControls(settings)), reference: Some(WireReferences(scales)), ..request };
        Ok(Self { request, files: InputFiles { init, controls, references } })
    }
}

impl ImagesBody {
    /// Validates the request against the model, then decodes the pictures.
    pub(super) async fn into_order(self, info: &ModelInfo) -> Result<ImagesOrder, ApiError> {
        let order = self.request.into_order(info, &self.files).await?;
        let images = uploads::decode(self.files, order.picture.size(), info.reference_side()).await?;
        Ok(order.with_images(images))
    }
}

impl FromFields for ImagesBody {
    fn from_fields(fields: Fields) -> Result<Self, ApiError> {
        Self::new(fields, FormPictures::default(), || Ok(None))
    }
}
