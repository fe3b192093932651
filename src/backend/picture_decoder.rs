//! From the bytes of a stranger's file to pixels. Only pixels and orientation are read; all else, such as a compressed colour profile, is
//! skipped. A file that ends early is broken, whatever its format.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, Pixel, metadata::Orientation};
use png::{BitDepth, ColorType};

/// Why a file is no picture, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

/// The most bytes for each pixel that a decoder takes beside the file: its buffers, samples of 16 bits with an alpha channel, and their
/// conversion to 8.
const BYTES_PER_PIXEL: u64 = 16;

/// The header of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Width and height as they are stored.
    pub(super) size: (u32, u32),
    pub(super) orientation: Orientation,
}

/// The most bytes of memory that it takes to [`decode`] a file and to scale the picture to `to`.
pub(super) fn room_for(file: &[u8], (width, height): (u32, u32), to: (u32, u32)) -> u64 {
    let pixels = |width: u32, height: u32| u64::from(width) * u64::from(height);
    // Between its two passes, the scaler keeps an image of the new width and the old height, of four numbers of 32 bits a pixel.
    let between = BYTES_PER_PIXEL * pixels(width, to.1);
    // Decoders copy the file into a buffer that doubles as it grows.
    4 * file.len() as u64 + BYTES_PER_PIXEL * pixels(width, height) + between + BYTES_PER_PIXEL * pixels(to.0, to.1)
}

/// Reads the header.
///
/// # Errors
/// When the header is broken, or the file visibly ends early.
pub(super) fn header(file: &[u8], format: ImageFormat) -> Result<Header, Broken> {
    guarded(|| match format {
        ImageFormat::Png => {
            let reader = open_png(file)?;
            let info = reader.info();
            let exif = info.exif_metadata.as_deref().and_then(Orientation::from_exif_chunk);
            Ok(Header { size: info.size(), orientation: exif.unwrap_or(Orientation::NoTransforms) })
        }
        other => {
            if other == ImageFormat::Jpeg && !has_jpeg_end(file) {
                return Err(Broken("it ends early".to_owned()));
            }
            let mut decoder = ImageReader::with_format(Cursor::new(file), other).into_decoder().map_err(broken)?;
            Ok(Header { size: decoder.dimensions(), orientation: decoder.orientation().unwrap_or(Orientation::NoTransforms) })
        }
    })
}

/// Decodes the pixels, as they are stored.
///
/// # Errors
/// When they are broken or not all there.
pub(super) fn decode(file: &[u8], format: ImageFormat) -> Result<DynamicImage, Broken> {
    guarded(|| match format {
        ImageFormat::Png => decode_png(file),
        other => ImageReader::with_format(Cursor::new(file), other).decode().map_err(broken),
    })
}

/// A file that makes a decoder panic is a broken file.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Broken("the decoder gave up".to_owned())))
}

fn broken(error: impl std::fmt::Display) -> Broken {
    Broken(error.to_string())
}

/// A reader that skips all but the pixels: image's own decoder inflates profiles and texts first, however long they are.
fn open_png(file: &[u8]) -> Result<png::Reader<Cursor<&[u8]>>, Broken> {
    let mut options = png::DecodeOptions::default();
    options.set_ignore_iccp_chunk(true);
    options.set_ignore_text_chunk(true);
    let mut decoder = png::Decoder::new_with_options(Cursor::new(file), options);
    decoder.set_limits(png::Limits { bytes: file.len().max(png::Limits::default().bytes) });
    decoder.set_transformations(png::Transformations::EXPAND);
    decoder.read_info().map_err(broken)
}

fn decode_png(file: &[u8]) -> Result<DynamicImage, Broken> {
    let mut reader = open_png(file)?;
    let mut samples = vec![0; reader.output_buffer_size().ok_or_else(|| Broken("it is too large".to_owned()))?];
    let frame = reader.next_frame(&mut samples).map_err(broken)?;
    samples.truncate(frame.buffer_size());
    let size = (frame.width, frame.height);
    let wide = || samples.as_chunks().0.iter().map(|bytes| u16::from_be_bytes(*bytes)).collect();
    let picture = match (frame.color_type, frame.bit_depth) {
        (ColorType::Grayscale, BitDepth::Eight) => picture(size, samples).map(DynamicImage::ImageLuma8),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => picture(size, samples).map(DynamicImage::ImageLumaA8),
        (ColorType::Rgb, BitDepth::Eight) => picture(size, samples).map(DynamicImage::ImageRgb8),
        (ColorType::Rgba, BitDepth::Eight) => picture(size, samples).map(DynamicImage::ImageRgba8),
        (ColorType::Grayscale, BitDepth::Sixteen) => picture(size, wide()).map(DynamicImage::ImageLuma16),
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => picture(size, wide()).map(DynamicImage::ImageLumaA16),
        (ColorType::Rgb, BitDepth::Sixteen) => picture(size, wide()).map(DynamicImage::ImageRgb16),
        (ColorType::Rgba, BitDepth::Sixteen) => picture(size, wide()).map(DynamicImage::ImageRgba16),
        _ => None,
    };
    picture.ok_or_else(|| Broken(format!("{:?} samples of {:?} bits are not read", frame.color_type, frame.bit_depth)))
}

fn picture<P: Pixel>((width, height): (u32, u32), samples: Vec<P::Subpixel>) -> Option<ImageBuffer<P, Vec<P::Subpixel>>> {
    ImageBuffer::from_raw(width, height, samples)
}

/// Whether a JPEG has its end marker (ITU T.81, B.1). Without this check, decoders fill missing samples with gray. Markers inside of
/// segments, such as a thumbnail's, are skipped with their segments.
fn has_jpeg_end(file: &[u8]) -> bool {
    const FILL: u8 = 0xff;
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    let is_standalone = |marker: u8| matches!(marker, 0x01 | 0xd0..=0xd7);
    // Outside of segments, markers stand between or after coded samples, in which 0xff is followed by 0.
    let Some(mut rest) = file.strip_prefix(&[FILL, START]) else { return false };
    while let Some(at) = rest.windows(2).position(|pair| pair[0] == FILL && pair[1] != 0 && pair[1] != FILL) {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        // Another picture begins before this one has ended.
        if matches!(marker, START | END) {
            return marker == END;
        }
        if !is_standalone(marker) {
            let Some((length, _)) = rest.split_first_chunk::<2>() else { return false };
            rest = rest.get(usize::from(u16::from_be_bytes(*length))..).unwrap_or_default();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use flate2::{Compression, write::ZlibEncoder};
    use image::{Rgb, RgbImage};
    use std::io::Write;

    use super::*;

    /// 24 x 16 pixels by Pillow, progressive and sequential.
    const JPEGS: [&str; 2] = [
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wgARCAAQABgDASIAAhEBAxEB/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAIEBf/EABYBAQEBAAAAAAAAAAAAAAAAAAMBBf/aAAwDAQACEAMQAAABjXZUbAa5pJ//xAAZEAACAwEAAAAAAAAAAAAAAAAAAgEDERP/2gAIAQEAAQUClTBVJpOAtJ//xAAZEQACAwEAAAAAAAAAAAAAAAAAAgMEESH/2gAIAQMBAT8BmsybwSy2H//EABkRAAMAAwAAAAAAAAAAAAAAAAABAwIEEf/aAAgBAgEBPwHXujG64f/EABQQAQAAAAAAAAAAAAAAAAAAACD/2gAIAQEABj8CX//EABkQAAIDAQAAAAAAAAAAAAAAAAABECFhMf/aAAgBAQABPyEVePAVuGR//9oADAMBAAIAAwAAABAgL//EABYRAQEBAAAAAAAAAAAAAAAAAAAxAf/aAAgBAwEBPxCiUtf/xAAXEQADAQAAAAAAAAAAAAAAAAAAARFB/9oACAECAQE/EJVWaB//xAAZEAEBAQEBAQAAAAAAAAAAAAABABExIUH/2gAIAQEAAT8QY+XBkjnkzOiIZP/Z",
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAQABgDASIAAhEBAxEB/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAMFBv/EAB8QAAIBBAIDAAAAAAAAAAAAAAABEQMEBSICEiFBQv/EABYBAQEBAAAAAAAAAAAAAAAAAAQCBv/EAB4RAAAGAgMAAAAAAAAAAAAAAAABAwQFEgIRISIx/9oADAMBAAIRAxEAPwCPVtWvQvjR2iDZ1cO38iuOD2nqDjn2Gi2Yp5JOL9TEG1tW48Aa61w7UagaVN9jX0IRkla8mP/Z",
    ];

    #[test]
    fn a_jpeg_that_ends_early_is_broken_wherever_it_ends() {
        for jpeg in JPEGS.map(|text| BASE64_STANDARD.decode(text).unwrap()) {
            assert_eq!(header(&jpeg, ImageFormat::Jpeg).unwrap().size, (24, 16));
            assert_eq!(decode(&jpeg, ImageFormat::Jpeg).unwrap().width(), 24);
            for end in 0..jpeg.len() {
                assert!(header(&jpeg[..end], ImageFormat::Jpeg).is_err(), "{end} of {} bytes", jpeg.len());
            }
            // Cut in the middle of coded samples.
            let then_another = [&jpeg[..jpeg.len() - 5], &jpeg[..]].concat();
            assert!(header(&then_another, ImageFormat::Jpeg).is_err());
            // Cameras put pictures inside of pictures, and notes behind them.
            let mut nested = jpeg[..2].to_vec();
            nested.extend([0xff, 0xe1]);
            nested.extend((2 + jpeg.len() as u16).to_be_bytes());
            nested.extend(&jpeg);
            nested.extend(&jpeg[2..]);
            let end = nested.len();
            nested.extend(b"a note");
            assert!(header(&nested, ImageFormat::Jpeg).is_ok());
            assert!(header(&nested[..end - 1], ImageFormat::Jpeg).is_err());
        }
    }

    /// A PNG with one more chunk behind its header.
    fn with_chunk(name: [u8; 4], content: &[u8]) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])).write_to(&mut file, ImageFormat::Png).unwrap();
        let mut file = file.into_inner();
        let mut crc = flate2::Crc::new();
        crc.update(&name);
        crc.update(content);
        let chunk = [&(content.len() as u32).to_be_bytes(), &name[..], content, &crc.sum().to_be_bytes()].concat();
        file.splice(33..33, chunk);
        file
    }

    #[test]
    fn what_a_png_carries_beside_its_pixels_is_not_looked_at() {
        let mut profile = ZlibEncoder::new(b"name\0\0".to_vec(), Compression::best());
        profile.write_all(&vec![0; 1 << 20]).unwrap();
        let file = with_chunk(*b"iCCP", &profile.finish().unwrap());
        assert!(open_png(&file).unwrap().info().icc_profile.is_none());
        let file = with_chunk(*b"tEXt", &[&b"parameters\0"[..], &vec![b'x'; 1 << 20]].concat());
        assert!(open_png(&file).unwrap().info().uncompressed_latin1_text.is_empty());
        for file in [file, with_chunk(*b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")] {
            assert_eq!(decode(&file, ImageFormat::Png).unwrap().to_rgb8().get_pixel(7, 7).0, [1, 2, 3]);
        }
        let turned = header(&with_chunk(*b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"), ImageFormat::Png);
        assert_eq!(turned.unwrap().orientation, Orientation::Rotate90);
    }

    #[test]
    fn a_decoder_that_panics_had_a_broken_file() {
        let error = guarded::<()>(|| panic!("as decoders do")).unwrap_err();
        assert_eq!(error.to_string(), "the decoder gave up");
    }
}
