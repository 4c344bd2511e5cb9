//! The fields of a JSON object, by name or synonym: which were asked for, and which nobody knows.

use serde_json::{Map, Value};

use crate::config::ConfigError;
use crate::layers::mamba1::DtInit;
use crate::settings::Bounded;

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// A field's name and others that mean the same.
pub(super) type Synonyms = &'static [(&'static str, &'static [&'static str])];

const WHOLE: &str = "a whole number, not negative";

fn whole(value: &Value) -> Option<usize> {
    // 2^53: up to there a float that is whole is the number that was meant.
    let meant = |x: &f64| x.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(x);
    let number = value.as_u64().or_else(|| value.as_f64().filter(meant).map(|x| x as u64));
    number.and_then(|n| usize::try_from(n).ok())
}

/// The fields of an object, and which of them were asked for.
pub(super) struct Fields<'a> {
    pub(super) file: &'a str,
    /// Prefix of the field's name in errors.
    within: &'static str,
    pub(super) map: &'a Map<String, Value>,
    synonyms: Synonyms,
    seen: Vec<&'static str>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Fields<'a> {
    /// The fields of `map`.
    ///
    /// # Errors
    /// If two synonyms have different values.
    pub(super) fn new(
        file: &'a str,
        within: &'static str,
        map: &'a Map<String, Value>,
        synonyms: Synonyms,
    ) -> Result<Self> {
        let fields = Self { file, within, map, synonyms, seen: Vec::new(), warnings: Vec::new() };
        for (key, others) in synonyms {
            let others = others.iter().filter_map(|key| Some((key, map.get(*key).filter(|value| !value.is_null())?)));
            let mut there = map.get(*key).map(|value| (key, value)).into_iter().chain(others);
            let Some((first, value)) = there.next() else { continue };
            if let Some((second, other)) = there.find(|(_, other)| !same(value, other)) {
                let fix = "they mean the same: remove the one that is wrong";
                return Err(fields.error(second, &format!("{value}, as `{}{first}` says", fields.within), other, fix));
            }
        }
        Ok(fields)
    }

    /// The error for a field, under the name that the file has for it.
    pub(super) fn error(&self, key: &str, wanted: &str, got: &Value, fix: &str) -> ConfigError {
        ConfigError::field(self.file, &format!("{}{}", self.within, self.called(key)), wanted, got, fix)
    }

    /// The name under which a field is in the file: its own, or a synonym.
    pub(super) fn called<'k>(&self, key: &'k str) -> &'k str {
        if self.map.contains_key(key) {
            return key;
        }
        let others = self.synonyms.iter().find(|(name, _)| *name == key).map_or(&[][..], |(_, others)| *others);
        others.iter().find(|other| self.map.get(**other).is_some_and(|value| !value.is_null())).copied().unwrap_or(key)
    }

    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.push(key);
        if let Some((_, others)) = self.synonyms.iter().find(|(name, _)| *name == key) {
            self.seen.extend(*others);
        }
        self.map.get(self.called(key))
    }

    /// The value of a field that is there and not null.
    pub(super) fn given(&mut self, key: &'static str) -> Option<&'a Value> {
        self.get(key).filter(|value| !value.is_null())
    }

    /// The keys that were not asked for.
    pub(super) fn unknown(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| !self.seen.contains(key))
    }

    pub(super) fn no_unknown(&self, fix: &str) -> Result<()> {
        match self.unknown().next() {
            None => Ok(()),
            Some((key, value)) => Err(self.error(key, "a key that elapid knows", value, fix)),
        }
    }

    /// The field, if it is there, must have one of these values: another one would be another model.
    pub(super) fn only(&mut self, key: &'static str, values: &[&str], fix: &str) -> Result<()> {
        match self.get(key) {
            Some(other) if !values.iter().any(|value| other == value) => {
                let wanted = values.iter().map(|value| format!("\"{value}\"")).collect::<Vec<_>>().join(" or ");
                Err(self.error(key, &wanted, other, fix))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn rms_norm(&mut self) -> Result<()> {
        match self.flag("rms_norm", true)? {
            true => Ok(()),
            false => Err(self.error("rms_norm", "true", &Value::Bool(false), "LayerNorm is not supported yet")),
        }
    }

    pub(super) fn required_size(&mut self, key: &'static str) -> Result<usize> {
        let fix = "give the size that the weights have";
        match self.get(key) {
            Some(value) => whole(value).ok_or_else(|| self.error(key, WHOLE, value, fix)),
            None => Err(ConfigError::field(self.file, &format!("{}{key}", self.within), WHOLE, "nothing", fix)),
        }
    }

    pub(super) fn size(&mut self, key: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        whole(value).ok_or_else(|| self.error(key, WHOLE, value, &format!("correct it (the default is {default})")))
    }

    /// A size that a setting can have.
    pub(super) fn bounded<const MIN: usize>(
        &mut self,
        key: &'static str,
        default: Bounded<MIN>,
    ) -> Result<Bounded<MIN>> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let wanted = format!("a whole number from {MIN} to {}", Bounded::<MIN>::MAX);
        let size = whole(value).and_then(Bounded::checked);
        size.ok_or_else(|| self.error(key, &wanted, value, &format!("correct it (the default is {default})")))
    }

    /// A size without a default.
    pub(super) fn required<const MIN: usize>(&mut self, key: &'static str) -> Result<Bounded<MIN>> {
        let size = self.required_size(key)?;
        let wanted = format!("a whole number from {MIN} to {}", Bounded::<MIN>::MAX);
        Bounded::checked(size)
            .ok_or_else(|| self.error(key, &wanted, &size.into(), "give the size that the weights have"))
    }

    /// A size that may be absent or null.
    pub(super) fn optional<const MIN: usize>(&mut self, key: &'static str) -> Result<Option<Bounded<MIN>>> {
        match self.given(key) {
            None => Ok(None),
            Some(_) => self.required(key).map(Some),
        }
    }

    /// A number that may be absent or null.
    pub(super) fn optional_real(&mut self, key: &'static str) -> Result<Option<f32>> {
        match self.given(key) {
            None => Ok(None),
            Some(_) => self.real(key, 0.0).map(Some),
        }
    }

    /// A flag that must not be set: it would make another model.
    pub(super) fn never(&mut self, key: &'static str, fix: &str) -> Result<()> {
        match self.flag(key, false)? {
            false => Ok(()),
            true => Err(self.error(key, "false", &Value::Bool(true), fix)),
        }
    }

    pub(super) fn real(&mut self, key: &'static str, default: f32) -> Result<f32> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        number
            .ok_or_else(|| self.error(key, "a finite number", value, &format!("correct it (the default is {default})")))
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value
            .as_bool()
            .ok_or_else(|| self.error(key, "true or false", value, &format!("correct it (the default is {default})")))
    }

    pub(super) fn dt_init(&mut self, key: &'static str) -> Result<DtInit> {
        match self.get(key).map(|value| (value, value.as_str())) {
            None | Some((_, Some("random"))) => Ok(DtInit::Random),
            Some((_, Some("constant"))) => Ok(DtInit::Constant),
            Some((value, _)) => {
                Err(self.error(key, "\"random\" or \"constant\"", value, "correct it (the default is \"random\")"))
            }
        }
    }

    /// A token id, with what it is if it is absent.
    pub(super) fn id_or(&mut self, key: &'static str, absent: Option<u32>) -> Result<Option<u32>> {
        if self.map.contains_key(key) { self.id(key) } else { Ok(absent) }
    }

    /// A token id: absent is 0 as `transformers` has it, null and -1 are none, of a list the first.
    pub(super) fn id(&mut self, key: &'static str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(Some(0)) };
        let one = match value {
            // All ids that end a text are read where text is made.
            Value::Array(list) if list.len() > 1 && key != "eos_token_id" => {
                let warning = format!("{}: `{key}` lists {} tokens; the first is used", self.file, list.len());
                self.warnings.push(warning);
                &list[0]
            }
            Value::Array(list) => list.first().unwrap_or(&Value::Null),
            other => other,
        };
        if one.is_null() || one.as_i64() == Some(-1) {
            return Ok(None);
        }
        let id = one.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| self.error(key, "a token id or null", value, "give the id that the tokenizer has"))
    }
}

/// Whether two values say the same: numbers by value, the two names of SiLU as one.
fn same(a: &Value, b: &Value) -> bool {
    let silu = |value: &Value| value == "silu" || value == "swish";
    a == b || (silu(a) && silu(b)) || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}
