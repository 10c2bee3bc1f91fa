//! Rules for source files: size, module comments, `unsafe`, and nothing left for later.

use super::{Report, Source};

const MOST_LINES: usize = 600;
const AIM_LINES: usize = 300;
/// Where code may step outside the language's guarantees: C++, one field of FFmpeg's, and libjpeg-turbo's crop.
const FOREIGN: [&str; 3] = ["collective/", "shards/src/ingest/ffi.rs", "shards/src/jpeg.rs"];
// In pieces, so that this file does not find itself.
const LEFT_FOR_LATER: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];

pub fn check(files: &[Source], report: &mut Report) {
    for file in files {
        let name = &file.path;
        let code = ["rs", "cpp", "h", "sh", "proto"].iter().any(|e| name.ends_with(&format!(".{e}")));
        if !code {
            continue;
        }
        let lines = file.text.lines().count();
        if lines >= MOST_LINES {
            report.findings.push(format!("{name}: {lines} lines; split it below {MOST_LINES}"));
        } else if lines > AIM_LINES {
            report.warnings.push(format!("{name}: {lines} lines; aim at {AIM_LINES}"));
        }
        for (number, line) in file.text.lines().enumerate() {
            let at = format!("{name}:{}", number + 1);
            for mark in LEFT_FOR_LATER {
                if line.contains(mark) {
                    report.findings.push(format!("{at}: {mark} is left; do it or file it elsewhere"));
                }
            }
            if name.ends_with(".rs") && !FOREIGN.iter().any(|f| name.starts_with(f)) && has_unsafe(line) {
                report.findings.push(format!("{at}: unsafe code outside of {}", FOREIGN.join(" and ")));
            }
        }
        if name.ends_with(".rs") && !file.text.starts_with("//!") {
            report.findings.push(format!("{name}: does not open with `//!` and what it is for"));
        }
    }
}

/// True where a line opens a block, function, impl or extern without guarantees, or allows one.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = concat!("un", "safe");
    if code.contains(concat!("allow(un", "safe_code")) {
        return true;
    }
    code.match_indices(word).any(|(i, _)| {
        let before = code[..i].chars().next_back();
        let after = code[i + word.len()..].trim_start();
        let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        whole && ["{", "fn ", "impl ", "extern ", "trait "].iter().any(|s| after.starts_with(s))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut report = Report::default();
        check(&[Source { path: path.into(), text: text.into() }], &mut report);
        report.findings
    }

    #[test]
    fn a_good_file_passes() {
        assert!(findings("shards/src/a.rs", "//! About.\nfn f() {}\n").is_empty());
    }

    #[test]
    fn each_rule_finds_its_breach() {
        assert_eq!(findings("shards/src/a.rs", "fn f() {}\n").len(), 1);
        let later = format!("//! About.\n// {} later\n", LEFT_FOR_LATER[0]);
        assert_eq!(findings("shards/src/a.rs", &later).len(), 1);
        let long = "//! About.\n".repeat(MOST_LINES);
        assert!(findings("shards/src/a.rs", &long)[0].contains("600 lines"));
        let raw = concat!("//! About.\nfn f() { un", "safe { g() } }\n");
        assert!(findings("shards/src/a.rs", raw)[0].starts_with("shards/src/a.rs:2: unsafe code"));
        assert!(findings("collective/src/a.rs", raw).is_empty());
    }

    #[test]
    fn comments_and_names_are_not_code() {
        assert!(!has_unsafe(concat!("// un", "safe { }")));
        assert!(!has_unsafe(concat!("let is_un", "safe = 1;")));
    }
}
