//! What a person sees of a running ingest: a bar on a terminal, else a plain line now and then.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// How often a plain line is printed.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts and shows.
pub struct Progress {
    show: Show,
    total: u64,
    begun: Instant,
    last_line: Instant,
    videos: u64,
    clips: u64,
    bytes: u64,
    skipped: u64,
}

enum Show {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Progress {
    /// For `total` videos, of which `videos` were through in an earlier run. `quiet` shows nothing.
    pub fn new(total: u64, videos: u64, quiet: bool) -> Self {
        let show = if quiet {
            Show::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total).with_position(videos);
            // A wrong template would only cost the looks.
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} videos, {msg}, {eta} left")
            {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            Show::Bar(bar)
        } else {
            Show::Lines
        };
        let now = now();
        Self { show, total, begun: now, last_line: now, videos, clips: 0, bytes: 0, skipped: 0 }
    }

    /// A clip was taken over.
    pub fn clip(&mut self, bytes: u64) {
        self.clips += 1;
        self.bytes += bytes;
        self.update();
    }

    /// A video is through.
    pub fn video(&mut self, skipped: bool) {
        self.videos += 1;
        self.skipped += u64::from(skipped);
        self.update();
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }

    fn update(&mut self) {
        match &self.show {
            Show::Bar(bar) => {
                bar.set_position(self.videos);
                bar.set_message(self.message());
            }
            Show::Lines if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = now();
                eprintln!("{}/{} videos, {}", self.videos, self.total, self.message());
            }
            Show::Lines | Show::Nothing => {}
        }
    }

    fn message(&self) -> String {
        let rate = self.bytes as f64 / 1e6 / self.begun.elapsed().as_secs_f64().max(1e-3);
        format!("{} clips, {rate:.1} MB/s, {} skipped", self.clips, self.skipped)
    }
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
