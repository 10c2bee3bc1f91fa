//! Line charts and heat maps as inline SVG. Colours are CSS variables of the page.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 26.0;

/// A line chart over steps.
pub(crate) struct Chart {
    pub height: f64,
    pub x: (f64, f64),
    pub y: (f64, f64),
    /// How a value of y reads.
    pub unit: fn(f64) -> String,
    pub series: Vec<Series>,
    /// Vertical lines with a word beside them.
    pub marks: Vec<(f64, String)>,
}

/// Points in the order of x.
pub(crate) struct Series {
    pub name: &'static str,
    /// The page's class for its colour: s1, s2 or faint.
    pub class: &'static str,
    pub dots: bool,
    pub points: Vec<(f64, f64)>,
}

impl Chart {
    pub fn svg(&self) -> String {
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {h}\" role=\"img\" preserveAspectRatio=\"xMidYMid meet\">",
            h = self.height
        );
        for tick in ticks(self.y.0, self.y.1, 4) {
            let y = self.at_y(tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                y + 4.0,
                (self.unit)(tick)
            );
        }
        for tick in ticks(self.x.0, self.x.1, 8) {
            let _ = write!(
                out,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{tick}</text>",
                self.at_x(tick),
                self.height - 8.0
            );
        }
        for (x, word) in &self.marks {
            let at = self.at_x(*x);
            // Near the right edge the word stands to the left of its line.
            let (anchor, shift) = if at > WIDTH * 0.6 { ("end", -6.0) } else { ("start", 6.0) };
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text class=\"word\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                self.height - BOTTOM,
                at + shift,
                TOP + 10.0,
                escape(word)
            );
        }
        for series in &self.series {
            self.draw(&mut out, series);
        }
        out + "</svg>"
    }

    fn draw(&self, out: &mut String, series: &Series) {
        let mut path = String::new();
        for (i, (x, y)) in series.points.iter().enumerate() {
            let step = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{step}{:.1} {:.1}", self.at_x(*x), self.at_y(*y));
        }
        let class = series.class;
        let _ =
            write!(out, "<path class=\"line {class}\" d=\"{path}\"><title>{}</title></path>", series.name);
        if series.dots {
            for (x, y) in &series.points {
                let _ = write!(
                    out,
                    "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}, step {x}: {}</title></circle>",
                    self.at_x(*x),
                    self.at_y(*y),
                    series.name,
                    (self.unit)(*y)
                );
            }
        }
    }

    fn at_x(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0).max(1e-9) * (WIDTH - LEFT - RIGHT)
    }

    /// Values outside of the chart stay at its edge.
    fn at_y(&self, y: f64) -> f64 {
        let share = ((y - self.y.0) / (self.y.1 - self.y.0).max(1e-9)).clamp(0.0, 1.0);
        self.height - BOTTOM - share * (self.height - BOTTOM - TOP)
    }
}

/// A running mean with the weight of about `window` points.
pub(crate) fn smooth(points: &[(f64, f64)], window: f64) -> Vec<(f64, f64)> {
    let (keep, mut sum, mut weight) = (1.0 - 1.0 / window.max(1.0), 0.0, 0.0);
    let mean = |&(x, y): &(f64, f64)| {
        sum = sum * keep + y;
        weight = weight * keep + 1.0;
        (x, sum / weight)
    };
    points.iter().map(mean).collect()
}

/// The matrix as a heat map: rows are true classes, columns predictions.
pub(crate) fn heat_map(labels: &[String], counts: &[Vec<u64>]) -> String {
    let n = labels.len();
    let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0) as f64;
    let cell = (520.0 / n.max(1) as f64).clamp(3.0, 34.0);
    // Names are drawn only where they can be read.
    let named = cell >= 12.0;
    let margin = if named { longest * 6.6 + 12.0 } else { 4.0 };
    let side = margin + n as f64 * cell + 4.0;
    let mut out = format!("<svg class=\"heat\" viewBox=\"0 0 {side:.0} {side:.0}\" role=\"img\">");
    for (row, name) in labels.iter().enumerate() {
        let total = counts[row].iter().sum::<u64>().max(1);
        let y = margin + row as f64 * cell;
        let middle = y + cell / 2.0 + 4.0;
        if named {
            let _ = write!(
                out,
                "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{middle:.1}\">{n}</text><text class=\"tick\" x=\"{x:.1}\" y=\"{t:.1}\" transform=\"rotate(-90 {x:.1} {t:.1})\">{n}</text>",
                margin - 6.0,
                n = escape(name),
                x = middle,
                t = margin - 6.0
            );
        }
        for (column, count) in counts[row].iter().enumerate() {
            let share = *count as f64 / total as f64;
            let x = margin + column as f64 * cell;
            let _ = write!(
                out,
                "<rect class=\"cell\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{w:.1}\" fill-opacity=\"{share:.3}\"><title>{} taken for {}: {count} of {total}</title></rect>",
                escape(name),
                escape(&labels[column]),
                w = cell - 1.5
            );
            if cell >= 20.0 && *count > 0 {
                let class = if share > 0.55 { "count strong" } else { "count" };
                let _ = write!(
                    out,
                    "<text class=\"{class}\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{middle:.1}\">{count}</text>",
                    x + cell / 2.0 - 0.75
                );
            }
        }
    }
    out + "</svg>"
}

/// Text as it may stand in HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Round numbers inside of a range, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low).max(1e-9) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    // Rounded, or 0.1 * 3 would be written in full.
    (first..=last).map(|i| (i as f64 * step * 1e9).round() / 1e9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 4), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(0.0, 840.0, 8), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(ticks(0.0, 0.3, 3), [0.0, 0.1, 0.2, 0.3]);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_starts_unbiased() {
        let flat: Vec<_> = (0..9).map(|i| (i as f64, 2.0)).collect();
        assert!(smooth(&flat, 5.0).iter().all(|(_, y)| (y - 2.0).abs() < 1e-12));
    }

    #[test]
    fn values_outside_stay_at_the_edge() {
        let chart = Chart {
            height: 100.0,
            x: (0.0, 1.0),
            y: (0.0, 1.0),
            unit: |v| v.to_string(),
            series: vec![],
            marks: vec![],
        };
        assert_eq!(chart.at_y(7.0), TOP);
        assert_eq!(chart.at_x(1.0), WIDTH - RIGHT);
    }
}
