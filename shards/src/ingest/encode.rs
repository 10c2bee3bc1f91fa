//! RGB frames to what a dataset stores: JPEG by libjpeg-turbo, or the bytes themselves.

use crate::format::Codec;
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

/// Encodes frames one after the other, reusing its buffers.
pub struct FrameEncoder {
    jpeg: Option<(Compressor, Vec<u8>)>,
}

impl FrameEncoder {
    /// An encoder of `codec`; `quality` is JPEG's, 1..=100.
    ///
    /// # Errors
    /// libjpeg-turbo refuses the quality or lacks memory.
    pub fn new(codec: Codec, quality: u8) -> Result<Self, String> {
        let jpeg = match codec {
            Codec::Raw => None,
            Codec::Jpeg => {
                let make = || {
                    let mut c = Compressor::new()?;
                    c.set_quality(quality.into())?;
                    // Video is 4:2:0 nearly always: finer chroma would store what was never there.
                    c.set_subsamp(Subsamp::Sub2x2)?;
                    Ok::<_, turbojpeg::Error>(c)
                };
                Some((make().map_err(|e| format!("set up the JPEG encoder: {e}"))?, Vec::new()))
            }
        };
        Ok(Self { jpeg })
    }

    /// The stored form of one frame, RGB8 (H, W, 3).
    ///
    /// # Errors
    /// `rgb` is not of that size, or libjpeg-turbo fails.
    pub fn encode<'a>(&'a mut self, rgb: &'a [u8], width: u32, height: u32) -> Result<&'a [u8], String> {
        let (width, height) = (width as usize, height as usize);
        if rgb.len() != width * height * 3 {
            return Err(format!("{} bytes are no frame of {width}x{height}", rgb.len()));
        }
        let Some((compressor, buffer)) = &mut self.jpeg else { return Ok(rgb) };
        let image = Image { pixels: rgb, width, pitch: width * 3, height, format: PixelFormat::RGB };
        let failed = |e| format!("encode a JPEG of {width}x{height}: {e}");
        let most = compressor.buf_len(width, height).map_err(failed)?;
        if buffer.len() < most {
            buffer.resize(most, 0);
        }
        let length = compressor.compress_to_slice(image, buffer).map_err(failed)?;
        Ok(&buffer[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::split_jpegs;

    #[test]
    fn jpegs_lie_back_to_back_and_decode() {
        let mut encoder = FrameEncoder::new(Codec::Jpeg, 90).unwrap();
        let mut bytes = Vec::new();
        for level in [10u8, 200, 90] {
            let rgb = vec![level; 33 * 17 * 3];
            bytes.extend_from_slice(encoder.encode(&rgb, 33, 17).unwrap());
        }
        let frames = split_jpegs(&bytes, 3).unwrap();
        let image = turbojpeg::decompress(&bytes[frames[1].clone()], PixelFormat::RGB).unwrap();
        assert_eq!((image.width, image.height), (33, 17));
        assert!(image.pixels.iter().all(|&v| (198..=202).contains(&v)));
    }

    #[test]
    fn raw_is_the_bytes_themselves() {
        let mut encoder = FrameEncoder::new(Codec::Raw, 90).unwrap();
        assert_eq!(encoder.encode(&[1, 2, 3, 4, 5, 6], 2, 1).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert!(encoder.encode(&[1, 2, 3], 2, 1).is_err());
    }
}
