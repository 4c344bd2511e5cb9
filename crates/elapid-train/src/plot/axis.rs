//! Axes: their range, their ticks, and how numbers are written.

use super::Scale;

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    /// The ends, as logarithms if the axis is logarithmic.
    low: f64,
    high: f64,
    /// Tick values with their text.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis for some values, with about `ticks` ticks, and `margin` of its length free at both ends. `None` if no
    /// value is finite, or above 0 if it is logarithmic.
    pub(super) fn new(values: impl Iterator<Item = f64>, scale: Scale, margin: f64, ticks: usize) -> Option<Self> {
        let scaled = values.map(|x| scaled(x, scale)).filter(|x| x.is_finite());
        let (low, high) = scaled.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        if low > high {
            return None;
        }
        let mut pad = (high - low) * margin;
        if high - low <= 1e-12 * high.abs().max(low.abs()) {
            pad = if low == 0.0 || scale.is_log() { 0.5 } else { low.abs() * 0.1 };
        }
        Some(Self::between(low - pad, high + pad, scale, ticks))
    }

    /// The same axis in another unit: every value times `factor`, which is above 0.
    pub(super) fn times(&self, factor: f64, ticks: usize) -> Self {
        let unit = |end: f64| match self.scale {
            Scale::Linear => end * factor,
            Scale::Log | Scale::Log2 => end + scaled(factor, self.scale),
        };
        Self::between(unit(self.low), unit(self.high), self.scale, ticks)
    }

    fn between(low: f64, high: f64, scale: Scale, ticks: usize) -> Self {
        let ticks = match scale {
            Scale::Linear => linear_ticks(low, high, ticks),
            Scale::Log => log_ticks(low, high),
            Scale::Log2 => log2_ticks(low, high),
        };
        Self { scale, low, high, ticks }
    }

    /// The position of a value: 0 at the beginning of the axis, 1 at the end, beyond for values outside. NaN if it has none.
    pub(super) fn place(&self, x: f64) -> f64 {
        let x = scaled(x, self.scale);
        if x.is_finite() { (x - self.low) / (self.high - self.low) } else { f64::NAN }
    }
}

fn scaled(x: f64, scale: Scale) -> f64 {
    match scale {
        Scale::Linear => x,
        Scale::Log | Scale::Log2 if x <= 0.0 => f64::NAN,
        Scale::Log => x.log10(),
        Scale::Log2 => x.log2(),
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<(f64, String)> {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough * 0.999).unwrap_or(10.0);
    let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    (first..=last.min(first.saturating_add(100)))
        .map(|i| {
            let x = i as f64 * step;
            (x, tick(x, low.abs().max(high.abs()), decimals))
        })
        .collect()
}

/// Powers of ten, and 2 and 5 times them where there are few.
fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let multiples: &[f64] = match high - low {
        ..=1.2 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        ..=3.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let every = ((high - low) / 12.0).ceil().max(1.0) as i32;
    ((low.floor() as i32)..=(high.ceil() as i32))
        .filter(|power| power % every == 0)
        .flat_map(|power| multiples.iter().map(move |m| m * 10_f64.powi(power)))
        .filter(|x| (low - 1e-9..=high + 1e-9).contains(&x.log10()))
        .map(|x| (x, tick(x, x, (1.0 - x.log10().floor()).clamp(0.0, 12.0) as usize)))
        .collect()
}

/// Powers of two; from 2^14 on with k for 2^10 and M for 2^20, as lengths are named.
fn log2_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let every = ((high - low) / 16.0).ceil().max(1.0) as i32;
    let text = |power: i32| match power {
        30.. => format!("{}G", 2_f64.powi(power - 30)),
        20.. => format!("{}M", 2_f64.powi(power - 20)),
        14.. => format!("{}k", 2_f64.powi(power - 10)),
        0.. => format!("{}", 2_f64.powi(power)),
        _ => tick(2_f64.powi(power), 2_f64.powi(power), 6),
    };
    (((low - 1e-9).ceil() as i32)..=((high + 1e-9).floor() as i32))
        .filter(|power| power % every == 0)
        .map(|power| (2_f64.powi(power), text(power)))
        .collect()
}

/// A number on an axis whose largest is `most`.
fn tick(x: f64, most: f64, decimals: usize) -> String {
    let (divisor, unit) = match most {
        1e9.. => (1e9, "G"),
        1e6.. => (1e6, "M"),
        1e4.. => (1e3, "k"),
        _ if most < 9e-4 => return if x == 0.0 { "0".into() } else { trim(&format!("{x:.1e}")) },
        _ => return trim(&format!("{x:.decimals$}")).replace('-', "−"),
    };
    if x == 0.0 { "0".into() } else { format!("{}{unit}", trim(&format!("{:.3}", x / divisor))).replace('-', "−") }
}

/// Without trailing zeros after the point.
fn trim(number: &str) -> String {
    match number.contains('.') && !number.contains('e') {
        true => number.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => number.replace(".0e", "e"),
    }
}

/// A value with four significant digits, from ten thousand on with k, M or G.
pub(super) fn value(x: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (divisor, unit) = units.into_iter().find(|(size, _)| x.abs() >= 1e4_f64.max(*size)).unwrap_or((1.0, ""));
    let short = x / divisor;
    // After rounding, so that 0.99996 is 1.000.
    let size = format!("{:.3e}", short.abs()).rsplit('e').next().and_then(|size| size.parse().ok()).unwrap_or(0);
    match size {
        _ if short == 0.0 => "0.000".into(),
        -4..6 => format!("{short:.*}{unit}", (3 - size).max(0) as usize),
        _ => format!("{short:.3e}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(low: f64, high: f64, log: Scale) -> Vec<String> {
        let axis = Axis::new([low, high].into_iter(), log, 0.0, 6).unwrap();
        axis.ticks.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(texts(0.0, 2000.0, Scale::Linear), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(texts(1.43, 2.51, Scale::Linear), ["1.6", "1.8", "2", "2.2", "2.4"]);
        assert_eq!(texts(0.0, 50_000.0, Scale::Linear), ["0", "10k", "20k", "30k", "40k", "50k"]);
        assert_eq!(texts(-1.0, 1.0, Scale::Linear), ["−1", "−0.5", "0", "0.5", "1"]);
        assert_eq!(texts(1.0, 100_000.0, Scale::Log), ["1", "10", "100", "1000", "10k", "100k"]);
        assert_eq!(texts(1.0, 100.0, Scale::Log), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(
            texts(1e-3, 1.0, Scale::Log),
            ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
        );
        assert_eq!(texts(0.0, 3e-5, Scale::Linear), ["0", "5e-6", "1e-5", "1.5e-5", "2e-5", "2.5e-5", "3e-5"]);
        assert_eq!(texts(64.0, 512.0, Scale::Log2), ["64", "128", "256", "512"]);
        assert_eq!(texts(4096.0, 32768.0, Scale::Log2), ["4096", "8192", "16k", "32k"]);
        assert_eq!(texts(1.0, 2_f64.powi(20), Scale::Log2)[8..], ["64k", "256k", "1M"]);
    }

    #[test]
    fn places() {
        let axis = Axis::new([10.0, 1000.0].into_iter(), Scale::Log, 0.0, 6).unwrap();
        assert_eq!((axis.place(10.0), axis.place(100.0), axis.place(1000.0)), (0.0, 0.5, 1.0));
        assert!(axis.place(0.0).is_nan() && axis.place(f64::NAN).is_nan());
        let axis = Axis::new([0.0, 10.0].into_iter(), Scale::Linear, 0.1, 6).unwrap();
        assert_eq!((axis.place(-1.0), axis.place(11.0)), (0.0, 1.0));
    }

    #[test]
    fn the_same_axis_in_another_unit() {
        for scale in [Scale::Linear, Scale::Log, Scale::Log2] {
            let axis = Axis::new([1.0, 3.0].into_iter(), scale, 0.1, 6).unwrap();
            let other = axis.times(1.5, 6);
            assert!([1.0, 2.0, 3.0].iter().all(|x| (axis.place(*x) - other.place(1.5 * x)).abs() < 1e-12), "{scale:?}");
        }
    }

    #[test]
    fn values_without_range() {
        for log in [Scale::Linear, Scale::Log, Scale::Log2] {
            for values in [vec![5.0], vec![3.0, 3.0, 3.0], vec![1e-9], vec![2.0, f64::NAN, f64::INFINITY]] {
                let axis = Axis::new(values.iter().copied(), log, 0.05, 6).unwrap();
                assert!((axis.place(values[0]) - 0.5).abs() < 1e-6, "{values:?}");
            }
        }
        assert_eq!(Axis::new([f64::NAN].into_iter(), Scale::Linear, 0.05, 6), None);
        assert_eq!(Axis::new([-1.0, 0.0].into_iter(), Scale::Log, 0.05, 6), None);
        assert!(Axis::new([0.0].into_iter(), Scale::Linear, 0.05, 6).is_some());
        let extreme = Axis::new([-f64::MAX / 4.0, f64::MAX / 4.0].into_iter(), Scale::Linear, 0.05, 6).unwrap();
        assert!(extreme.ticks.len() < 102);
    }

    #[test]
    fn values_have_four_digits() {
        for (x, text) in [
            (1.469_23, "1.469"),
            (12.345, "12.35"),
            (0.012_345, "0.01235"),
            (0.0, "0.000"),
            (0.999_96, "1.000"),
            (9999.0, "9999"),
            (856_656.0, "856.7k"),
            (-1.122e6, "-1.122M"),
            (1e9, "1.000G"),
            (1e-9, "1.000e-9"),
            (1e30, "1.000e21G"),
        ] {
            assert_eq!(value(x), text);
        }
    }
}
