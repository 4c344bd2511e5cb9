//! Settings: structs whose fields carry their documentation and default. They are read from TOML or JSON with errors that
//! name the field, and printed with a comment for each field.
//!
//! `settings!` makes such a struct; the commented TOML, `config.json` and `--set` follow from it.

use std::fmt;
use std::ops::{Deref, Range};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use strsim::levenshtein;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A field of a settings struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name in files.
    pub name: &'static str,
    /// Its documentation, line by line.
    pub doc: &'static [&'static str],
    /// Whether it matters in training alone: how new weights are drawn, what is dropped.
    pub init: bool,
}

/// The trait that `settings!` implements.
pub trait Settings: Default + PartialEq + Clone + Serialize + for<'de> Deserialize<'de> {
    /// The fields, in order.
    const FIELDS: &'static [Field];

    /// The values as TOML, in the order of [`FIELDS`](Self::FIELDS).
    fn values(&self) -> Vec<String>;
}

/// Declares a struct of settings: each field has its documentation, its type and its default. `@init` before a field means
/// that it matters in training alone: it says how new weights are drawn, or what is dropped.
///
/// ```
/// elapid::settings! {
///     /// How it is cooked.
///     pub struct Cooking {
///         /// Minutes in the oven.
///         minutes: u32 = 20,
///     }
/// }
/// assert_eq!(Cooking::default().minutes, 20);
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[doc = $about:literal])+ $vis:vis struct $name:ident {
        $( $(#[doc = $doc:literal])+ $(@ $tag:ident)? $field:ident : $type:ty = $default:expr ),+ $(,)?
    }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        $vis struct $name { $( $(#[doc = $doc])+ pub $field: $type, )+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $crate::settings::Settings for $name {
            const FIELDS: &'static [$crate::settings::Field] =
                &[$( $crate::settings::Field {
                    name: stringify!($field),
                    doc: &[$($doc),+],
                    init: !<[&str]>::is_empty(&[$(stringify!($tag))?]),
                } ),+];

            fn values(&self) -> Vec<String> {
                vec![$( $crate::settings::toml_value(&self.$field) ),+]
            }
        }
    };
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting with its sections: `model.layer.mamba1.d_state`.
    pub field: String,
    /// Its place in the text, if it came from one.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub what: String,
    /// The fix.
    pub fix: String,
}

impl Problem {
    /// An impossible value.
    pub fn value(field: impl Into<String>, wanted: impl fmt::Display, got: impl fmt::Display) -> Self {
        let (what, fix) = (format!("wanted {wanted}, got {got}"), format!("set it to {wanted}"));
        Self { field: field.into(), span: None, what, fix }
    }

    /// An error unless a value is finite and above 0.
    ///
    /// # Errors
    /// If it is not.
    pub fn unless_positive(field: &str, x: f32) -> Result<(), Self> {
        let wanted = "a finite number above 0";
        if x.is_finite() && x > 0.0 { Ok(()) } else { Err(Self::value(field, wanted, x)) }
    }

    /// An error unless a value is finite and 0 or more.
    ///
    /// # Errors
    /// If it is not.
    pub fn unless_not_negative(field: &str, x: f32) -> Result<(), Self> {
        let wanted = "a finite number, not negative";
        if x.is_finite() && x >= 0.0 { Ok(()) } else { Err(Self::value(field, wanted, x)) }
    }

    /// The same problem, for a field of a section.
    #[must_use]
    pub fn within(self, section: &str) -> Self {
        Self { field: format!("{section}.{}", self.field), ..self }
    }
}

/// Reads a struct of settings from the table at `path`; missing fields have their defaults.
///
/// # Errors
/// An unknown field (with the nearest known one), or a value of the wrong type.
pub fn read<S: Settings>(path: &str, value: Spanned<DeValue<'_>>) -> Result<S, Problem> {
    let places = match value.get_ref() {
        DeValue::Table(table) => places(table),
        _ => Vec::new(),
    };
    S::deserialize(ValueDeserializer::from(value)).map_err(|error| {
        let message = error.message().lines().next().unwrap_or_default().to_owned();
        let inside = |at: usize| places.iter().find(|(_, span)| span.contains(&at)).map(|(name, _)| name.as_str());
        let name = error.span().and_then(|span| inside(span.start));
        let field = name.map_or_else(|| path.to_owned(), |name| format!("{path}.{name}"));
        let unknown = message.starts_with("unknown field");
        let (what, fix) = match name {
            Some(name) if unknown => {
                let names: Vec<String> = S::FIELDS.iter().map(|field| field.name.to_owned()).collect();
                let near = nearest(name, &names).unwrap_or_default();
                ("there is no such setting".to_owned(), format!("did you mean `{path}.{near}`?"))
            }
            _ if message.starts_with("unknown variant") => (message, "choose one of them".to_owned()),
            _ => (message, "crates/elapid-train/configs/default.toml shows every setting".to_owned()),
        };
        Problem { field, span: error.span(), what, fix }
    })
}

/// Every key of a table with the range of text that it and its value cover.
fn places(table: &DeTable<'_>) -> Vec<(String, Range<usize>)> {
    let place = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        let start = key.span().start.min(value.span().start);
        (key.get_ref().to_string(), start..key.span().end.max(value.span().end))
    };
    table.iter().map(place).collect()
}

/// A value as TOML, inline.
pub fn toml_value(value: &impl Serialize) -> String {
    let mut text = String::new();
    // Settings are numbers, text and lists of text, all of which TOML can express.
    _ = value.serialize(toml::ser::ValueSerializer::new(&mut text));
    // 0.00000001 is 1e-8.
    match text.parse::<f64>() {
        Ok(number) if text.starts_with("0.0000") && number != 0.0 => format!("{number:e}"),
        _ => text,
    }
}

/// The fields of some settings as TOML, each with its documentation as a comment.
pub fn commented(fields: &[Field], values: &[String]) -> String {
    let mut text = String::new();
    for (field, value) in fields.iter().zip(values) {
        for line in field.doc {
            text += &format!("#{}\n", line.trim_end());
        }
        text += &format!("{} = {value}\n", field.name);
    }
    text
}

/// The name with the smallest edit distance; of the last part only if the section is wrong too.
pub fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |other: &String| levenshtein(name, other).min(levenshtein(&last(name), &last(other)) + 1);
    names.iter().min_by_key(|other| distance(other)).map(String::as_str)
}

/// An integer from `MIN` to 2^31 - 1, so that twice the product of two fits in 64 bits, whatever a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bounded<const MIN: usize>(usize);

/// A size: at least 1.
pub type Size = Bounded<1>;

/// A count: 0 or more.
pub type Count = Bounded<0>;

impl<const MIN: usize> Bounded<MIN> {
    /// The largest.
    pub const MAX: usize = i32::MAX as usize;

    /// The number, clamped to the range.
    pub const fn new(n: usize) -> Self {
        Self(if n < MIN {
            MIN
        } else if n > Self::MAX {
            Self::MAX
        } else {
            n
        })
    }

    /// The number, if it is in range.
    pub fn checked(n: usize) -> Option<Self> {
        (MIN..=Self::MAX).contains(&n).then_some(Self(n))
    }

    /// The number.
    pub fn get(self) -> usize {
        self.0
    }
}

impl<const MIN: usize> Deref for Bounded<MIN> {
    type Target = usize;

    fn deref(&self) -> &usize {
        &self.0
    }
}

impl<const MIN: usize> fmt::Display for Bounded<MIN> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, const MIN: usize> Deserialize<'de> for Bounded<MIN> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = i64::deserialize(deserializer)?;
        let bounded = usize::try_from(n).ok().and_then(Self::checked);
        let wanted = format!("a whole number from {MIN} to {}", Self::MAX);
        bounded.ok_or_else(|| de::Error::invalid_value(de::Unexpected::Signed(n), &wanted.as_str()))
    }
}

/// A value, or "auto": derived from other settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auto<T> {
    /// Derived from other settings.
    #[default]
    Auto,
    /// This value.
    Is(T),
}

impl<T: Copy> Auto<T> {
    /// `of` applied to the value, or `auto`.
    pub fn map_or<U>(self, auto: U, of: impl FnOnce(T) -> U) -> U {
        match self {
            Self::Auto => auto,
            Self::Is(value) => of(value),
        }
    }

    /// The value, or `auto`.
    pub fn or(self, auto: T) -> T {
        match self {
            Self::Auto => auto,
            Self::Is(value) => value,
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Is(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Auto<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, or \"auto\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Auto<T>, E> {
                let other = || T::deserialize(de::IntoDeserializer::<E>::into_deserializer(text));
                if text == "auto" { Ok(Auto::Auto) } else { other().map(Auto::Is) }
            }

            fn visit_bool<E: de::Error>(self, is: bool) -> Result<Auto<T>, E> {
                T::deserialize(de::IntoDeserializer::<E>::into_deserializer(is)).map(Auto::Is)
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Auto<T>, E> {
                T::deserialize(de::IntoDeserializer::<E>::into_deserializer(n)).map(Auto::Is)
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Auto<T>, E> {
                T::deserialize(de::IntoDeserializer::<E>::into_deserializer(n)).map(Auto::Is)
            }

            fn visit_f64<E: de::Error>(self, x: f64) -> Result<Auto<T>, E> {
                T::deserialize(de::IntoDeserializer::<E>::into_deserializer(x)).map(Auto::Is)
            }
        }
        deserializer.deserialize_any(V(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    settings! {
        /// For tests.
        struct Oven {
            /// Degrees.
            ///
            /// Celsius.
            degrees: f32 = 1e-5,
            /// Trays.
            @init trays: Size = Size::new(2),
            /// Minutes.
            minutes: Auto<Count> = Auto::Auto,
        }
    }

    fn parse(text: &str) -> Result<Oven, Problem> {
        let table = DeTable::parse(text).unwrap();
        let span = table.span();
        read("oven", Spanned::new(span, DeValue::Table(table.into_inner())))
    }

    #[test]
    fn what_is_printed_is_read() {
        let oven = Oven { degrees: 0.1, trays: Size::new(7), minutes: Auto::Is(Count::new(0)) };
        let text = commented(Oven::FIELDS, &oven.values());
        assert_eq!(text, "# Degrees.\n#\n# Celsius.\ndegrees = 0.1\n# Trays.\ntrays = 7\n# Minutes.\nminutes = 0\n");
        assert_eq!(parse(&text).unwrap(), oven);
        assert_eq!(commented(Oven::FIELDS, &Oven::default().values()).lines().nth(3), Some("degrees = 1e-5"));
        assert_eq!(parse("minutes = \"auto\"").unwrap(), Oven::default());
    }

    #[test]
    fn problems_name_the_field_and_its_place() {
        let problem = parse("trays = 3\ntray = 4").unwrap_err();
        assert_eq!((problem.field.as_str(), problem.fix.as_str()), ("oven.tray", "did you mean `oven.trays`?"));
        assert_eq!(problem.span.unwrap().start, 10);
        for (text, field) in
            [("trays = 0", "oven.trays"), ("trays = 9999999999", "oven.trays"), ("degrees = \"hot\"", "oven.degrees")]
        {
            assert_eq!(parse(text).unwrap_err().field, field, "{text}");
        }
        let soon = parse("minutes = \"soon\"").unwrap_err();
        assert_eq!(soon.field, "oven.minutes");
    }

    #[test]
    fn what_draws_weights_is_marked() {
        let marked: Vec<&str> = Oven::FIELDS.iter().filter(|field| field.init).map(|field| field.name).collect();
        assert_eq!(marked, ["trays"]);
    }
}
