//! The learning rate of each step.

use std::f64::consts::PI;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// How the learning rate falls from its peak to its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine, from the peak to the floor at the last step.
    #[default]
    Cosine,
    /// A straight line between the same points.
    Linear,
    /// The peak throughout.
    Constant,
    /// The peak for 68 % of the steps, then the end of the cosine over all of them, which begins 23 % of the way up from the
    /// floor to the peak (warm-up, stable, decay; Hu et al. 2024).
    Wsd,
}

/// Steps of the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Warmup {
    /// A tenth of the steps, at most 100.
    #[default]
    Auto,
    /// This many steps.
    Steps(u64),
}

impl Warmup {
    /// Its length in a run of `steps` steps.
    pub fn of(self, steps: u64) -> u64 {
        match self {
            Self::Auto => (steps / 10).min(100),
            Self::Steps(warmup) => warmup,
        }
    }
}

impl Serialize for Warmup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Steps(steps) => steps.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Warmup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Warmup;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, not negative, or \"auto\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Warmup, E> {
                if text == "auto" { Ok(Warmup::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_i64<E: de::Error>(self, steps: i64) -> Result<Warmup, E> {
                let unfit = || E::invalid_value(de::Unexpected::Signed(steps), &self);
                u64::try_from(steps).map(Warmup::Steps).map_err(|_| unfit())
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// Share of the steps after the warm-up during which [`Decay::Wsd`] stays at the peak.
const STABLE: f64 = 0.68;

/// Linear warm-up, then a decay to a floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    peak: f64,
    floor: f64,
    warmup: u64,
    steps: u64,
    decay: Decay,
}

impl Schedule {
    /// A schedule of `steps` steps, `warmup` of them warm-up.
    ///
    /// # Errors
    /// If a rate is negative or not finite, the floor is above the peak, or the warm-up is longer than the run.
    pub fn new(peak: f64, floor: f64, warmup: u64, steps: u64, decay: Decay) -> Result<Self> {
        let check = |holds: bool, argument, wanted: String, got: String| {
            if holds { Ok(()) } else { Err(Error::Argument { argument, wanted, got }) }
        };
        check(peak.is_finite() && peak >= 0.0, "lr", "a finite number, not negative".into(), peak.to_string())?;
        check((0.0..=peak).contains(&floor), "min_lr", format!("0 to lr, which is {peak}"), floor.to_string())?;
        check(warmup <= steps, "warmup", format!("at most the {steps} steps"), warmup.to_string())?;
        Ok(Self { peak, floor, warmup, steps, decay })
    }

    /// The learning rate of a step, counted from 0.
    ///
    /// Step `s` of the warm-up has `peak (s + 1) / warmup`, so the first step is not wasted. The first step after the
    /// warm-up has the peak; the last step, and any beyond it, has the floor.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        // From 0 at the first step after the warm-up to 1 at the last; a single such step is at the peak.
        let since = (step - self.warmup) as f64;
        let last = self.steps.saturating_sub(self.warmup + 1) as f64;
        let done = if since < last { since / last } else { f64::from(u8::from(since > 0.0)) };
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Wsd if done < STABLE => self.peak,
            Decay::Linear => self.floor + (self.peak - self.floor) * (1.0 - done),
            Decay::Cosine | Decay::Wsd => self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule::new(1.0, 0.1, 10, 111, decay).unwrap()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} and {b}");
    }

    #[test]
    fn warms_up() {
        for decay in [Decay::Cosine, Decay::Linear, Decay::Constant, Decay::Wsd] {
            close(schedule(decay).lr(0), 0.1);
            close(schedule(decay).lr(9), 1.0);
            close(schedule(decay).lr(10), 1.0);
        }
    }

    #[test]
    fn decays() {
        close(schedule(Decay::Cosine).lr(60), 0.55);
        close(schedule(Decay::Cosine).lr(35), 0.1 + 0.45 * (1.0 + (PI / 4.0).cos()));
        close(schedule(Decay::Linear).lr(35), 0.775);
        close(schedule(Decay::Constant).lr(100), 1.0);
        close(schedule(Decay::Wsd).lr(77), 1.0);
        close(schedule(Decay::Wsd).lr(85), schedule(Decay::Cosine).lr(85));
    }

    #[test]
    fn ends_at_the_floor() {
        for decay in [Decay::Cosine, Decay::Linear, Decay::Wsd] {
            assert!(schedule(decay).lr(109) > 0.1);
            close(schedule(decay).lr(110), 0.1);
            close(schedule(decay).lr(111), 0.1);
            close(schedule(decay).lr(u64::MAX), 0.1);
        }
    }

    #[test]
    fn short_runs() {
        for (warmup, steps) in [(0, 0), (0, 1), (1, 1), (5, 5), (5, 6), (0, 2)] {
            let schedule = Schedule::new(1.0, 0.0, warmup, steps, Decay::Cosine).unwrap();
            for step in 0..8 {
                let lr = schedule.lr(step);
                assert!((0.0..=1.0).contains(&lr), "warmup {warmup}, steps {steps}, step {step}: {lr}");
            }
        }
        close(Schedule::new(1.0, 0.0, 0, 1, Decay::Cosine).unwrap().lr(0), 1.0);
        close(Schedule::new(1.0, 0.0, 5, 6, Decay::Linear).unwrap().lr(5), 1.0);
        close(Schedule::new(1.0, 0.0, 0, 2, Decay::Linear).unwrap().lr(1), 0.0);
    }

    #[test]
    fn the_warm_up_follows_the_steps() {
        let lengths = [0, 1, 9, 20, 1000, 50_000].map(|steps| Warmup::Auto.of(steps));
        assert_eq!(lengths, [0, 0, 0, 2, 100, 100]);
        assert_eq!(Warmup::Steps(7).of(1000), 7);
    }

    #[test]
    fn refuses_nonsense() {
        for (peak, floor, warmup) in [(f64::NAN, 0.0, 0), (-1.0, 0.0, 0), (1.0, 2.0, 0), (1.0, -0.1, 0), (1.0, 0.0, 9)]
        {
            assert!(Schedule::new(peak, floor, warmup, 8, Decay::Cosine).is_err());
        }
    }
}
