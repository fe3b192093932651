//! What a stranger's file says of how its picture was made: the text that A1111 writes.

use std::io::Cursor;

use image::{ImageDecoder, ImageReader};

use super::{ImageFile, exif, picture_decoder};

/// The most bytes of a text. Compressed ones are read no further.
const MAX_TEXT: usize = 1 << 20;
/// What A1111 calls its text in a PNG file.
const PARAMETERS: &str = "parameters";

impl ImageFile {
    /// The text, if there is one.
    #[must_use]
    pub fn parameters(&self) -> Option<String> {
        let (bytes, format) = self.contents();
        let text = picture_decoder::guarded(|| {
            Ok(match format {
                image::ImageFormat::Png => png_text(bytes),
                other => {
                    let decoder = ImageReader::with_format(Cursor::new(bytes), other).into_decoder().ok();
                    decoder.and_then(|mut decoder| decoder.exif_metadata().ok()?).and_then(exif::comment)
                }
            })
        });
        text.ok().flatten()
    }
}

/// The texts before the pixels; A1111 writes there.
fn png_text(bytes: &[u8]) -> Option<String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_limits(png::Limits { bytes: bytes.len() + MAX_TEXT });
    let reader = decoder.read_info().ok()?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|text| text.keyword == PARAMETERS).map(|text| text.text.clone());
    let unicode = || info.utf8_text.iter().find(|text| text.keyword == PARAMETERS).and_then(|text| text.get_text().ok());
    let compressed = || {
        let mut text = info.compressed_latin1_text.iter().find(|text| text.keyword == PARAMETERS)?.clone();
        text.decompress_text_with_limit(MAX_TEXT).ok()?;
        text.get_text().ok()
    };
    plain.or_else(unicode).or_else(compressed)
}
