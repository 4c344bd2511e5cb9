//! Groups of parameters that are trained in a way of their own: `[[train.group]]`.

use elapid::params::Params;

use crate::config::{ConfigError, ParamGroup};

/// Gives the parameters of each group its factor of the learning rate, its weight decay, or leaves them as they are; what
/// two groups say of one parameter, the later says.
///
/// # Errors
/// If a pattern fits no parameter.
pub(crate) fn apply(groups: &[ParamGroup], params: &mut Params) -> Result<(), ConfigError> {
    for (i, group) in groups.iter().enumerate() {
        for pattern in &group.parameters {
            let mut found = false;
            for (_, param) in params.iter_mut().filter(|(_, param)| fits(pattern, &param.name)) {
                found = true;
                param.traits.lr = group.lr as f32;
                param.traits.decay = group.decay.or(param.traits.decay);
                param.traits.trainable = group.trained;
            }
            if !found {
                let example = params.iter().next().map_or_else(String::new, |(_, param)| param.name.clone());
                return Err(ConfigError {
                    file: "config".to_owned(),
                    line: None,
                    field: format!("train.group {} parameters", i + 1),
                    what: format!("`{pattern}` fits the name of no parameter"),
                    fix: format!("names are like `{example}`, as `elapid inspect` lists them; * stands for any text"),
                });
            }
        }
    }
    Ok(())
}

/// Whether a name is what a pattern says, in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    // The shortest text that `*` can stand for leaves the most for what follows.
    (0..=rest.len()).filter(|&at| rest.is_char_boundary(at)).any(|at| fits(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, wanted) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("*", "a.b", true),
            ("*.A_log", "backbone.layers.0.mixer.A_log", true),
            ("*.A_log", "backbone.layers.0.mixer.A_logs", false),
            ("backbone.*.mixer.*", "backbone.layers.3.mixer.D", true),
            ("backbone.*.ffn.*", "backbone.layers.3.mixer.D", false),
            ("*a*a", "aba", true),
            ("*a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
