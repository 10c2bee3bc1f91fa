//! Durations and sizes that carry their unit: "30s", "256 MiB".

use serde::{Deserialize, Deserializer, de::Error as _};
use std::{str::FromStr, time::Duration};

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A duration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(pub f64);

impl Seconds {
    /// As std's type.
    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0)
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = humantime::parse_duration(text).map(|d| Self(d.as_secs_f64()));
        parsed.map_err(|_| format!("{text:?} is not a duration; write it like \"30s\" or \"2m\""))
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).ok_or_else(|| format!("{text:?} is not a size; write it like \"256 MiB\""))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

fn parse_bytes(text: &str) -> Option<Bytes> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let scale: f64 = match unit.trim() {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        "TiB" => 1099511627776.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * scale;
    (bytes >= 1.0).then_some(Bytes(bytes as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(parse_bytes("256 MiB"), Some(Bytes(256 << 20)));
        assert_eq!(parse_bytes("1.5GB"), Some(Bytes(1_500_000_000)));
        assert_eq!(parse_bytes("256"), None);
        assert_eq!(parse_bytes("0 B"), None);
    }
}
