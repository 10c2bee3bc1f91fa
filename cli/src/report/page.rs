//! The page: facts, curves, clips, confusion matrix. Everything inline, light and dark.

use super::{
    Eval, Picture,
    chart::{Chart, Series, escape, heat_map, smooth},
    history::{History, Step},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

pub(crate) fn html(run: &str, data: &str, history: &History, eval: &Eval, pictures: &[Picture]) -> String {
    let mut out = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style></head><body><main><header><h1>Training report</h1><p>{0}</p></header>",
        escape(run)
    );
    tiles(&mut out, history, eval);
    curves(&mut out, history);
    clips(&mut out, eval, pictures);
    if !eval.confusion.is_empty() {
        let _ = write!(
            out,
            "<section><h2>Confusion matrix</h2><p>Rows are the true classes, columns the predictions; {} clips of {}, {} views each.</p>{}</section>",
            eval.clips,
            escape(&eval.split),
            eval.views.clips * eval.views.crops,
            heat_map(&eval.labels, &eval.confusion)
        );
    }
    facts(&mut out, run, data, history, eval);
    out + "</main></body></html>\n"
}

fn tiles(out: &mut String, history: &History, eval: &Eval) {
    let chance = 1.0 / eval.labels.len().max(1) as f64;
    let tiles = [
        (
            "Top-1 accuracy",
            percent(eval.top1),
            format!("{} views; chance is {}", eval.views.clips * eval.views.crops, percent(chance)),
        ),
        ("Top-5 accuracy", percent(eval.top5), format!("{} clips of {}", eval.clips, eval.split)),
        ("Throughput", format!("{:.1}", history.clips_per_second()), "clips a second, all workers".into()),
        ("Waiting for data", percent(history.share(|s| s.data_wait_seconds)), "of the time of a step".into()),
    ];
    out.push_str("<div class=\"tiles\">");
    for (name, value, note) in tiles {
        let _ = write!(
            out,
            "<div><span>{name}</span><strong>{value}</strong><small>{}</small></div>",
            escape(&note)
        );
    }
    out.push_str("</div>");
}

fn curves(out: &mut String, history: &History) {
    let steps: Vec<&Step> = history.steps.values().collect();
    let last = steps.last().map_or(1, |s| s.step) as f64;
    let window = (last / 40.0).clamp(1.0, 50.0);
    let marks: Vec<(f64, String)> = history
        .resumes()
        .into_iter()
        .map(|(stopped, from)| (from as f64, format!("stopped after step {stopped}, resumed from {from}")))
        .collect();
    let line = |name, class, dots, points| Series { name, class, dots, points };
    let of = |steps: &[&Step], value: fn(&Step) -> Option<f64>| -> Vec<(f64, f64)> {
        steps.iter().filter_map(|s| Some((s.step as f64, value(s)?))).collect()
    };
    let repeated: Vec<&Step> = history.repeated.iter().collect();
    let evals = |value: fn(&super::history::Measured) -> Option<f64>| -> Vec<(f64, f64)> {
        history.evals.values().filter_map(|e| Some((e.step as f64, value(e)?))).collect()
    };

    let loss = of(&steps, |s| s.loss);
    let most = loss.iter().map(|p| p.1).fold(0.0, f64::max).max(1e-3) * 1.05;
    let curve = |height, y, unit, series| {
        Chart { height, x: (0.0, last), y, unit, series, marks: marks.clone() }.svg()
    };
    figure(
        out,
        "Loss",
        &[("s1", "training, each step and smoothed"), ("s2", "validation, each epoch")],
        &curve(
            230.0,
            (0.0, most),
            |v| format!("{v}"),
            vec![
                line("repeated", "again", false, of(&repeated, |s| s.loss)),
                line("training loss", "s1 faint", false, loss.clone()),
                line("training loss, smoothed", "s1", false, smooth(&loss, window)),
                line("validation loss", "s2", true, evals(|e| e.loss)),
            ],
        ),
    );
    let accuracy = of(&steps, |s| s.accuracy);
    figure(
        out,
        "Accuracy",
        &[("s1", "training clips, smoothed"), ("s2", "validation, each epoch, one view")],
        &curve(
            230.0,
            (0.0, 1.0),
            percent,
            vec![
                line("training accuracy", "s1", false, smooth(&accuracy, window * 2.0)),
                line("validation accuracy", "s2", true, evals(|e| e.top1)),
            ],
        ),
    );
    // The same lines again, without the words.
    let marks: Vec<(f64, String)> = marks.into_iter().map(|(x, _)| (x, String::new())).collect();
    let curve = |height, y, unit, series| {
        Chart { height, x: (0.0, last), y, unit, series, marks: marks.clone() }.svg()
    };
    let pace = of(&steps, |s| (s.step_seconds > 0.0).then(|| s.clips as f64 / s.step_seconds));
    let pace = smooth(&pace, window);
    let fastest = pace.iter().map(|p| p.1).fold(0.0, f64::max).max(1e-3) * 1.15;
    figure(
        out,
        "Clips a second",
        &[],
        &curve(150.0, (0.0, fastest), |v| format!("{v}"), vec![line("clips a second", "s1", false, pace)]),
    );
    let wait = of(&steps, |s| (s.step_seconds > 0.0).then(|| s.data_wait_seconds / s.step_seconds));
    figure(
        out,
        "Share of a step spent waiting for data",
        &[],
        &curve(120.0, (0.0, 1.0), percent, vec![line("data wait", "s1", false, smooth(&wait, window))]),
    );
}

fn figure(out: &mut String, title: &str, legend: &[(&str, &str)], svg: &str) {
    let _ = write!(out, "<section><h2>{title}</h2>");
    if !legend.is_empty() {
        out.push_str("<p class=\"legend\">");
        for (class, name) in legend {
            let _ = write!(out, "<span><i class=\"{class}\"></i>{name}</span>");
        }
        out.push_str("</p>");
    }
    let _ = write!(out, "{svg}</section>");
}

fn clips(out: &mut String, eval: &Eval, pictures: &[Picture]) {
    let _ = write!(
        out,
        "<section><h2>Clips of {} that training never saw</h2><p>Each picture shows a clip's frames row by row, from left to right.</p><div class=\"clips\">",
        escape(&eval.split)
    );
    for Picture { prediction: p, png } in pictures {
        let truth = p.label.as_deref().unwrap_or("unlabelled");
        let (class, word) =
            if p.correct == Some(true) { ("right", "&#10003;") } else { ("wrong", "&#10007;") };
        let _ = write!(
            out,
            "<figure><img alt=\"frames of {0}\" src=\"data:image/png;base64,{1}\"><figcaption><b>{2}</b>",
            escape(&p.clip_id),
            STANDARD.encode(png),
            escape(truth)
        );
        for (i, guess) in p.top.iter().take(2).enumerate() {
            let (class, word) = if i == 0 { (class, word) } else { ("", "") };
            let _ = write!(
                out,
                "<span class=\"guess {class}\"><em style=\"width:{:.1}%\"></em><span>{word} {}</span><span>{}</span></span>",
                guess.probability * 100.0,
                escape(&guess.label),
                percent(guess.probability)
            );
        }
        out.push_str("</figcaption></figure>");
    }
    out.push_str("</div></section>");
}

fn facts(out: &mut String, run: &str, data: &str, history: &History, eval: &Eval) {
    let last = history.steps.keys().next_back().copied().unwrap_or(0);
    let generations = history.generations.iter().map(|g| {
        let steps = g.steps.map_or("no step".into(), |(a, b)| format!("steps {a} to {b}"));
        format!("{}: {} workers, {steps}", g.number, g.workers)
    });
    let seconds = history.steps.values().map(|s| s.step_seconds).sum::<f64>();
    let mut rows = vec![
        ("Run", run.to_string()),
        ("Dataset", data.to_string()),
        ("Steps", format!("{last}, of which {} were done twice", history.repeated.len())),
        ("Generations", generations.collect::<Vec<_>>().join("; ")),
        ("Time in training steps", minutes(seconds)),
        ("Time in all, start-up and evaluation included", minutes(history.seconds())),
        ("Steps a second", format!("{:.2}", history.steps.len() as f64 / seconds)),
        ("Waiting for other workers", percent(history.share(|s| s.exchange_wait_seconds))),
        ("Checkpoints written at steps", join(&history.checkpoints)),
        (
            "Peak memory of the first worker",
            format!("{:.2} GiB", history.peak_memory() as f64 / (1u64 << 30) as f64),
        ),
        ("Checkpoint evaluated", format!("step {}, after {} epochs", eval.step, eval.epoch)),
        ("Validation loss", format!("{:.4}", eval.loss)),
    ];
    let missing = history.missing();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.into_iter().collect();
        rows.push(("Damaged clips left out", format!("{}: {}", names.len(), names.join(", "))));
    }
    if !eval.missing.is_empty() {
        let names: Vec<&str> = eval.missing.iter().map(|m| m.clip_id.as_str()).collect();
        let all = format!("{}: {}", names.len(), names.join(", "));
        rows.push(("Damaged clips left out of the evaluation", all));
    }
    if !history.incidents.is_empty() {
        let told = history.incidents.iter().map(|i| {
            format!("{} {} at step {}, {:.1} s: {}", i.incident, i.worker, i.step, i.seconds, i.cause)
        });
        rows.push(("Incidents", told.collect::<Vec<_>>().join("; ")));
    } else if !history.lost.is_empty() {
        rows.push(("Workers lost", history.lost.join("; ")));
    }
    out.push_str("<section><h2>Facts</h2><table>");
    for (name, value) in rows {
        let _ = write!(out, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    out.push_str("</table></section>");
}

fn join(steps: &[u64]) -> String {
    steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn minutes(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    format!("{} min {:02} s", whole / 60, whole % 60)
}

fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.0);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Guess, Missing, Prediction, Views, history::tests::sample},
        *,
    };

    #[test]
    fn the_page_is_whole_and_escaped() {
        let eval = Eval {
            step: 12,
            epoch: 3,
            split: "val".into(),
            views: Views { clips: 4, crops: 3 },
            clips: 2,
            top1: 0.5,
            top5: 1.0,
            loss: 0.7,
            labels: vec!["a<b".into(), "c".into()],
            confusion: vec![vec![1, 0], vec![1, 0]],
            predictions: vec![],
            missing: vec![Missing { clip_id: "val/7".into() }],
        };
        let prediction = Prediction {
            clip_id: "x".into(),
            label: Some("c".into()),
            correct: Some(false),
            top: vec![Guess { label: "a<b".into(), probability: 0.9 }],
        };
        let pictures = [Picture { prediction, png: vec![1, 2, 3] }];
        let html = html("s3://b/run", "s3://b/data", &sample(), &eval, &pictures);
        assert!(!html.contains("a<b") && html.contains("a&lt;b"));
        assert_eq!(html.matches("<svg").count(), 5);
        assert!(html.contains("stopped after step 6, resumed from 4"));
        assert!(html.contains("data:image/png;base64,AQID"));
        assert!(html.contains("12, of which 2 were done twice"));
        assert!(html.contains("left out of the evaluation</th><td>1: val/7</td>"));
        assert!(!html.contains("NaN") && !html.contains("http"), "self-contained");
        for tag in ["section", "figure", "svg", "table", "div", "main"] {
            let open = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
