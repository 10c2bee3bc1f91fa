//! The one thing that `ffmpeg-next` does not hand out safely: the pixel aspect ratio of a container's stream.
//!
//! WebM and many MP4 files state it only there, not in the coded pictures. This is the crate's whole
//! unsafe code: one field read through a pointer that the borrowed stream keeps valid.
#![allow(unsafe_code)]

use ffmpeg_next::{Rational, Stream};

/// Width of a pixel by its height by the container's account; 0/1 where it says nothing.
pub fn pixel_aspect(stream: &Stream) -> Rational {
    // SAFETY: `as_ptr` reads the stream's entry in its format context, which `stream` borrows; FFmpeg
    // allocates both before it hands out the stream and frees them together.
    unsafe { Rational::from((*stream.as_ptr()).sample_aspect_ratio) }
}
