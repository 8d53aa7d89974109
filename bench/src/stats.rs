//! Percentiles, medians and spreads.

use serde::{Deserialize, Serialize};

/// The value below which `share` (0 to 1) of the ascending `sorted` lie, by nearest rank; none of
/// none.
pub(crate) fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A metric over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of no value; values that are no number are left out.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Self { median, min, max })
    }
}

/// A number with about three digits that mean something.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    match () {
        () if !value.is_finite() => "-".to_owned(),
        () if size >= 10_000.0 => grouped(value.round()),
        () if size >= 100.0 => format!("{value:.0}"),
        () if size >= 10.0 => format!("{value:.1}"),
        () if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        () => format!("{value:.4}"),
    }
}

fn grouped(value: f64) -> String {
    let plain = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nearest rank: of a hundred values the p99 is the ninety-ninth, of one value every percentile
    /// is that value.
    #[test]
    fn percentiles_by_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 0.50), Some(50));
        assert_eq!(percentile(&hundred, 0.99), Some(99));
        assert_eq!(percentile(&hundred, 0.999), Some(100));
        assert_eq!(percentile(&hundred, 1.0), Some(100));
        assert_eq!(percentile(&hundred, 0.0), Some(1));
        assert_eq!(percentile(&[7], 0.999), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }

    /// The median of an even number of rounds lies between the two in the middle, and what is not a
    /// number counts for nothing.
    #[test]
    fn spread_of_rounds() {
        let spread = Spread::of([4.0, 1.0, f64::NAN, 3.0, 2.0]);
        assert_eq!(spread, Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([9.0]), Some(Spread { median: 9.0, min: 9.0, max: 9.0 }));
        assert_eq!(Spread::of([f64::INFINITY]), None);
    }

    /// Every size of number keeps about three digits.
    #[test]
    fn digits_that_mean_something() {
        let shown =
            [0.0, 0.012_34, 0.567, 5.67, 56.78, 567.8, 5678.0, 56_789.4, 1_234_567.0].map(digits);
        let meant =
            ["0.00", "0.0123", "0.57", "5.67", "56.8", "568", "5678", "56,789", "1,234,567"];
        assert_eq!(shown, meant);
        assert_eq!(digits(f64::NAN), "-");
    }
}
