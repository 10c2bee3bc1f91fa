//! Which request gets which fault: a pure function of the seed, the rules and the request.

use sha2::{Digest, Sha256};
use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

/// What is done to a request or to its answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Waits before it is passed on. Delays add up, and another fault may follow.
    Delay(Duration),
    /// Holds the request that long, then passes it on.
    Stall(Duration),
    /// Passes on the head and half of the answer's body, and the rest that much later.
    StallBody(Duration),
    /// Answers with this status and S3 error code, and asks nobody.
    Answer { status: u16, code: String },
    /// Breaks the connection off in the middle of the answer's body.
    Cut,
    /// Leaves out the second half of the body, and says so in Content-Length: looks whole.
    Shorten,
    /// Changes one byte of the answer's body.
    Flip,
    /// Passes the request on, and closes the connection without the answer.
    Lose,
    /// Resets the connection before the request is passed on.
    Reset,
    /// Says "created" where the answer is that the object exists: as a store that ignores put-if-absent does.
    Blind,
}

/// What the store says when it has too much to do.
pub const SLOW_DOWN: (u16, &str) = (503, "SlowDown");

/// A fault, and what it befalls. As text: `METHODS KEYS SHARE FAULT [ARGUMENT]`, like
/// `GET data/*.parquet 0.15 answer 503` or `* * 1 delay 20ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Upper case; empty: every method.
    pub methods: Vec<String>,
    /// The path after the bucket, where `*` stands for anything.
    pub keys: String,
    /// Of the requests that match, in 0..=1.
    pub share: f64,
    /// It happens at most so often.
    pub limit: Option<u64>,
    pub fault: Fault,
}

impl Rule {
    /// A fault of a share of the GETs of keys.
    pub fn gets(keys: &str, share: f64, fault: Fault) -> Self {
        Self { methods: vec!["GET".into()], keys: keys.into(), share, limit: None, fault }
    }

    /// At most `limit` times.
    pub fn at_most(self, limit: u64) -> Self {
        Self { limit: Some(limit), ..self }
    }

    fn matches(&self, request: &Request) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| m == request.method))
            && glob(&self.keys, request.key)
    }
}

/// What decides over a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// The path after the bucket.
    pub key: &'a str,
    /// The Range header and the query.
    pub part: &'a str,
}

/// Draws faults. The nth request of a method, key and part meets the same fate whatever came between.
#[derive(Debug)]
pub struct Dice {
    seed: u64,
    rules: Vec<(Rule, u64)>,
    seen: HashMap<String, u64>,
}

impl Dice {
    /// Nothing was asked yet.
    pub fn new(seed: u64, rules: Vec<Rule>) -> Self {
        Self { seed, rules: rules.into_iter().map(|r| (r, 0)).collect(), seen: HashMap::new() }
    }

    /// Other rules from now on, with limits of their own; the requests so far stay counted.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules.into_iter().map(|r| (r, 0)).collect();
    }

    /// What befalls this request: any delays, then at most one other fault, of the first rule that draws.
    pub fn draw(&mut self, request: &Request) -> Vec<Fault> {
        let name = format!("{} {} {}", request.method, request.key, request.part);
        let nth = self.seen.entry(name.clone()).or_default();
        *nth += 1;
        let mut faults = Vec::new();
        for (number, (rule, happened)) in self.rules.iter_mut().enumerate() {
            let spent = rule.limit.is_some_and(|most| *happened >= most);
            if spent || !rule.matches(request) || chance(self.seed, number, &name, *nth) >= rule.share {
                continue;
            }
            *happened += 1;
            faults.push(rule.fault.clone());
            if !matches!(rule.fault, Fault::Delay(_)) {
                break;
            }
        }
        faults
    }
}

/// Uniform in 0..1.
fn chance(seed: u64, rule: usize, name: &str, nth: u64) -> f64 {
    let digest = Sha256::digest(format!("{seed} {rule} {nth} {name}"));
    let word = digest[..8].iter().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    (word >> 11) as f64 / (1u64 << 53) as f64
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(tail, &rest[at..]))
        }),
    }
}

impl Fault {
    /// One word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::Stall(_) => "stall",
            Self::StallBody(_) => "stall-body",
            Self::Answer { .. } => "answer",
            Self::Cut => "cut",
            Self::Shorten => "shorten",
            Self::Flip => "flip",
            Self::Lose => "lose",
            Self::Reset => "reset",
            Self::Blind => "blind",
        }
    }

    /// An answer with the error code that S3 gives with this status.
    pub fn answer(status: u16) -> Self {
        let code = match status {
            301 => "PermanentRedirect",
            400 => "AuthorizationHeaderMalformed",
            403 => "AccessDenied",
            404 => "NoSuchKey",
            409 => "ConditionalRequestConflict",
            412 => "PreconditionFailed",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => SLOW_DOWN.1,
            _ => "Error",
        };
        Self::Answer { status, code: code.into() }
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [methods, keys, share, fault, argument @ ..] = words.as_slice() else {
            return Err(format!("{text:?}: write METHODS KEYS SHARE FAULT [ARGUMENT]"));
        };
        let share: f64 = share.parse().map_err(|e| format!("share {share:?}: {e}"))?;
        if !(0.0..=1.0).contains(&share) {
            return Err(format!("share {share} must lie between 0 and 1"));
        }
        let wait = || match argument {
            [time] => humantime::parse_duration(time).map_err(|e| format!("{fault} {time:?}: {e}")),
            _ => Err(format!("{fault}: write how long, like \"{fault} 20ms\"")),
        };
        let fault = match *fault {
            "delay" => Fault::Delay(wait()?),
            "stall" => Fault::Stall(wait()?),
            "stall-body" => Fault::StallBody(wait()?),
            "answer" => match argument {
                [status] => {
                    let status: u16 = status.parse().map_err(|e| format!("answer {status:?}: {e}"))?;
                    if !(300..600).contains(&status) {
                        return Err(format!("answer {status}: write a status between 300 and 599"));
                    }
                    Fault::answer(status)
                }
                _ => return Err("answer: write a status, like \"answer 503\"".into()),
            },
            "cut" => Fault::Cut,
            "shorten" => Fault::Shorten,
            "flip" => Fault::Flip,
            "lose" => Fault::Lose,
            "reset" => Fault::Reset,
            "blind" => Fault::Blind,
            other => {
                return Err(format!(
                    "{other:?}: the faults are delay, stall, stall-body, answer, cut, shorten, flip, lose, reset and blind"
                ));
            }
        };
        let methods = match *methods {
            "*" => vec![],
            some => some.split(',').map(str::to_uppercase).collect(),
        };
        Ok(Self { methods, keys: keys.to_string(), share, limit: None, fault })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(key: &'a str, part: &'a str) -> Request<'a> {
        Request { method: "GET", key, part }
    }

    #[test]
    fn a_fate_depends_on_the_request_and_not_on_the_order() {
        let rules = vec![Rule::gets("data/*", 0.3, Fault::Flip)];
        let parts: Vec<String> = (0..300).map(|i| format!("bytes={i}-")).collect();
        let fates = |reversed: bool, seed| {
            let mut dice = Dice::new(seed, rules.clone());
            let mut all: Vec<_> = parts.iter().collect();
            if reversed {
                all.reverse();
            }
            let mut fates: Vec<_> = all.iter().map(|p| (*p, dice.draw(&get("data/0", p)))).collect();
            fates.sort_by_key(|f| f.0);
            fates
        };
        assert_eq!(fates(false, 1), fates(true, 1));
        assert_ne!(fates(false, 1), fates(false, 2));
        let hit = fates(false, 1).iter().filter(|f| !f.1.is_empty()).count();
        assert!((60..120).contains(&hit), "{hit} of 300 at 0.3");
    }

    #[test]
    fn rules_mind_methods_keys_and_limits() {
        let text = ["* * 1 delay 20ms", "get,head data/*.parquet 1 answer 503", "PUT * 1 lose"];
        let mut rules: Vec<Rule> = text.iter().map(|t| t.parse().unwrap()).collect();
        rules[1].limit = Some(2);
        let mut dice = Dice::new(0, rules);
        let mut names = |method, key| -> Vec<&str> {
            dice.draw(&Request { method, key, part: "" }).iter().map(Fault::name).collect()
        };
        assert_eq!(names("GET", "dataset.json"), ["delay"]);
        assert_eq!(names("GET", "data/a/0.parquet"), ["delay", "answer"]);
        assert_eq!(names("HEAD", "data/0.parquet"), ["delay", "answer"]);
        assert_eq!(names("GET", "data/a/0.parquet"), ["delay"], "at most twice");
        assert_eq!(names("PUT", "x"), ["delay", "lose"]);
    }

    #[test]
    fn rules_that_cannot_be_are_refused_in_words() {
        for (text, words) in [
            ("GET *", "METHODS KEYS SHARE"),
            ("GET * 2 flip", "between 0 and 1"),
            ("GET * 1 melt", "the faults are"),
            ("GET * 1 stall soon", "soon"),
            ("GET * 1 answer", "answer 503"),
            ("GET * 1 answer 200", "between 300 and 599"),
        ] {
            let said = text.parse::<Rule>().unwrap_err();
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, same) in [
            ("*", "", true),
            ("data/*", "data/a/b", true),
            ("*.parquet", "a.json", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b", "ac", false),
        ] {
            assert_eq!(glob(pattern, text), same, "{pattern} {text}");
        }
    }
}
