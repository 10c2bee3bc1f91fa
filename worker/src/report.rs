//! Scores as text for people: bars, accuracy of each class, the confusion matrix.

use crate::{metrics::Tally, ranking::Ranking};
use serde_json::{Value, json};
use std::fmt::Write;

/// Up to this many classes the whole matrix is shown; beyond, only where it goes wrong.
const WHOLE_MATRIX: usize = 20;
/// Lines of each list that is cut short.
const LINES: usize = 10;
const BAR: usize = 20;
/// Longer names are cut.
const NAME: usize = 28;

/// Accuracy, the accuracy of each class, and who is taken for whom.
pub fn tally(tally: &Tally, labels: &[String]) -> String {
    if let Some(ranking) = tally.ranking() {
        return several(tally, ranking, labels);
    }
    let mut text = format!(
        "top-1 {:6.2} %   top-5 {:6.2} %   mean class {:6.2} %   loss {:.4}\n\n",
        100.0 * tally.top1(),
        100.0 * tally.top5(),
        100.0 * tally.mean_class_accuracy().unwrap_or(0.0),
        tally.loss()
    );
    let width = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).clamp(5, NAME);
    let few = labels.len() <= WHOLE_MATRIX;
    classes(&mut text, tally, labels, width, few);
    if few {
        matrix(&mut text, tally, labels, width);
    } else {
        confused(&mut text, tally, labels, width);
    }
    text
}

/// For clips of several classes: mean average precision, how often the best guess is one of them, and the
/// average precision of each class, the worst first where there are many.
fn several(tally: &Tally, ranking: &Ranking, labels: &[String]) -> String {
    let mut text = format!(
        "mAP {:6.2} %   best guess right {:6.2} %   among the best five {:6.2} %   loss {:.4}\n\n",
        100.0 * ranking.mean().unwrap_or(0.0),
        100.0 * tally.top1(),
        100.0 * tally.top5(),
        tally.loss()
    );
    let width = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).clamp(5, NAME);
    let all = labels.len() <= WHOLE_MATRIX;
    let mut found: Vec<(usize, f64)> =
        ranking.per_class().into_iter().enumerate().filter_map(|(c, ap)| Some((c, ap?))).collect();
    if !all {
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        found.truncate(LINES);
    }
    let title = if all { "class" } else { "worst classes" };
    let _ = writeln!(text, "{}  average precision", padded(title, width));
    for (c, ap) in found {
        let line = format!("{}  {:5.1} %  {}", padded(&labels[c], width), 100.0 * ap, bar(ap));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// One line a class of `best`: its name, per cent and a bar.
pub fn bars(best: &[usize], labels: &[String], probabilities: &[f64]) -> String {
    let width = best.iter().map(|&c| labels[c].chars().count()).max().unwrap_or(0).min(NAME);
    let line = |&c: &usize| {
        let p = probabilities[c];
        let line = format!("{}  {:6.2} %  {}", padded(&labels[c], width), 100.0 * p, bar(p));
        line.trim_end().to_string() + "\n"
    };
    best.iter().map(line).collect()
}

/// The classes of `best` for JSON.
pub fn top(best: &[usize], labels: &[String], probabilities: &[f64]) -> Vec<Value> {
    let entry = |&c: &usize| json!({ "label": labels[c], "label_id": c, "probability": probabilities[c] });
    best.iter().map(entry).collect()
}

fn classes(text: &mut String, tally: &Tally, labels: &[String], width: usize, all: bool) {
    let counts = tally.per_class();
    let mut order: Vec<usize> = (0..labels.len()).filter(|&c| counts[c].clips > 0).collect();
    if !all {
        let accuracy = |c: usize| counts[c].accuracy().unwrap_or(1.0);
        order.sort_by(|&a, &b| accuracy(a).total_cmp(&accuracy(b)));
        order.truncate(LINES);
    }
    let title = if all { "class" } else { "worst classes" };
    let _ = writeln!(text, "{}  clips   right", padded(title, width));
    for c in order {
        let (n, accuracy) = (counts[c], counts[c].accuracy().unwrap_or(0.0));
        let name = padded(&labels[c], width);
        let line = format!("{name}  {:5}  {:5.1} %  {}", n.clips, 100.0 * accuracy, bar(accuracy));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push('\n');
}

fn matrix(text: &mut String, tally: &Tally, labels: &[String], width: usize) {
    let n = labels.len();
    let largest = (0..n).flat_map(|t| (0..n).map(move |p| tally.confusion(t, p))).max().unwrap_or(0);
    let cell = largest.to_string().len().max(n.saturating_sub(1).to_string().len()) + 1;
    let _ = writeln!(text, "confusion: a row is the true class, a column the predicted one");
    let heads: String = (0..n).map(|p| format!("{p:>cell$}")).collect();
    let _ = writeln!(text, "   {} {heads}", padded("", width));
    for (t, label) in labels.iter().enumerate() {
        let cells: String = (0..n)
            .map(|p| match tally.confusion(t, p) {
                0 => format!("{:>cell$}", "."),
                k => format!("{k:>cell$}"),
            })
            .collect();
        let _ = writeln!(text, "{t:2} {} {cells}", padded(label, width));
    }
}

fn confused(text: &mut String, tally: &Tally, labels: &[String], width: usize) {
    let n = labels.len();
    let pairs = (0..n).flat_map(|t| (0..n).map(move |p| (t, p))).filter(|(t, p)| t != p);
    let mut pairs: Vec<(u64, usize, usize)> =
        pairs.map(|(t, p)| (tally.confusion(t, p), t, p)).filter(|(k, ..)| *k > 0).collect();
    pairs.sort_by_key(|&(k, t, p)| (std::cmp::Reverse(k), t, p));
    let _ = writeln!(text, "most confused");
    for (k, t, p) in pairs.into_iter().take(LINES) {
        let _ = writeln!(text, "{}  {k:5} taken for {}", padded(&labels[t], width), labels[p]);
    }
}

/// "1 clip", "2 clips".
pub fn clips(n: usize) -> String {
    if n == 1 { "1 clip".into() } else { format!("{n} clips") }
}

/// Cut or filled to `width` characters.
fn padded(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return format!("{name:<width$}");
    }
    name.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn bar(share: f64) -> String {
    "█".repeat((share.clamp(0.0, 1.0) * BAR as f64).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_classes_show_the_whole_matrix() {
        let labels = ["pan left", "pan right", "zoom"].map(String::from);
        let mut t = Tally::new(3);
        for (best, label) in [(0, 0), (0, 1), (1, 1), (0, 0)] {
            let mut p = [0.1; 3];
            p[best] = 0.8;
            t.add(&p, label).unwrap();
        }
        let want = "\
top-1  75.00 %   top-5 100.00 %   mean class  75.00 %   loss 0.7430

class      clips   right
pan left       2  100.0 %  ████████████████████
pan right      2   50.0 %  ██████████

confusion: a row is the true class, a column the predicted one
              0 1 2
 0 pan left   2 . .
 1 pan right  1 1 .
 2 zoom       . . .
";
        assert_eq!(tally(&t, &labels), want);
    }

    #[test]
    fn many_classes_show_what_goes_wrong() {
        let labels: Vec<String> = (0..21).map(|c| format!("class {c}")).collect();
        let mut t = Tally::new(21);
        for label in [3, 3, 4] {
            let mut p = [0.0; 21];
            p[4] = 1.0;
            t.add(&p, label).unwrap();
        }
        let text = tally(&t, &labels);
        assert!(text.contains("class 3       2 taken for class 4"), "{text}");
        assert!(text.find("class 3 ").unwrap() < text.find("class 4 ").unwrap(), "the worst first: {text}");
        assert!(!text.contains("class 5"), "{text}");
    }

    #[test]
    fn several_classes_a_clip_show_their_average_precision() {
        let labels = ["run", "sit", "never"].map(String::from);
        let mut t = Tally::multi_label(3, 2);
        t.count(0, &[0.9, 0.2, 0.1], &[0, 1]).unwrap();
        t.count(1, &[0.3, 0.6, 0.2], &[0]).unwrap();
        let want = "\
mAP  75.00 %   best guess right  50.00 %   among the best five 100.00 %   loss 0.6939

class  average precision
run    100.0 %  ████████████████████
sit     50.0 %  ██████████
";
        assert_eq!(tally(&t, &labels), want);
    }

    #[test]
    fn bars_and_cut_names() {
        let labels = ["a".repeat(40), "b".into()];
        let text = bars(&[1, 0], &labels, &[0.25, 0.75]);
        assert_eq!(
            text,
            format!(
                "b{}   75.00 %  {}\n{}…   25.00 %  █████\n",
                " ".repeat(27),
                "█".repeat(15),
                "a".repeat(27)
            )
        );
    }
}
