//! Recipes: an experiment as a TOML file. Unknown keys are errors with a suggestion.

mod config;
mod quant;

pub use config::{
    DataConfig, LossConfig, MixedPrecision, ModelConfig, Recipe, StageConfig, StageKind, TeacherDtype,
};
pub use quant::QuantConfig;

use crate::error::TrainError;
use squat_files::read::{self, Limit, ReadError};
use squat_quant::spelling::nearest;
use std::path::{Path, PathBuf};

fn with_suggestion(message: &str) -> String {
    // Serde says: unknown field `x`, expected one of `a`, `b`.
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.contains("unknown field") || message.contains("unknown variant"), quoted.next()) {
        (true, Some(word)) => match nearest(word, quoted) {
            Some(near) => format!("{message}\nhint: did you mean `{near}`?"),
            None => message.to_owned(),
        },
        _ => message.to_owned(),
    }
}

impl Recipe {
    /// Reads a recipe and applies `key=value` settings; keys are dotted paths, stages are named: `stage.fp.steps=100`.
    ///
    /// # Errors
    /// A missing file, bad TOML, unknown keys, or values that contradict each other.
    pub fn load(path: &Path, settings: &[String]) -> Result<Self, TrainError> {
        let text = read::text(path, Limit::Config).map_err(|error| match error {
            ReadError::Missing(path) => squat_data::DataError::missing(&path).into(),
            error => TrainError::Recipe(format!("cannot read recipe: {error}")),
        })?;
        Self::parse(&text, settings).map_err(|error| match error {
            TrainError::Recipe(message) => TrainError::Recipe(format!("{}: {message}", path.display())),
            other => other,
        })
    }

    /// The same from text.
    ///
    /// # Errors
    /// Bad TOML, unknown keys, or values that contradict each other.
    pub fn parse(text: &str, settings: &[String]) -> Result<Self, TrainError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|e| TrainError::Recipe(e.to_string().trim().to_owned()))?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        if let Some((stage, old, new)) = renamed_keys(&mut table).next() {
            return Err(TrainError::Recipe(format!(
                "stage `{stage}`: `{old}` is now called `{new}`; write `{new}`"
            )));
        }
        let recipe: Self = toml::Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            // An error in the text itself is shown with its line; one from a setting has no line.
            let message = match toml::from_str::<Self>(text) {
                Err(in_text) => in_text.to_string(),
                Ok(_) => format!("after --set {}: {}", settings.join(" --set "), error.message()),
            };
            TrainError::Recipe(with_suggestion(message.trim()))
        })?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// A recipe as [`Self::to_toml`] wrote it, by this version or one before it: keys of that time are understood.
    ///
    /// # Errors
    /// Bad TOML, unknown keys, or values that contradict each other.
    pub fn parse_resolved(text: &str) -> Result<Self, TrainError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|e| TrainError::Recipe(e.to_string().trim().to_owned()))?;
        if renamed_keys(&mut table).count() == 0 {
            return Self::parse(text, &[]);
        }
        Self::parse(&toml::to_string(&table).map_err(|e| TrainError::Recipe(e.to_string()))?, &[])
    }

    /// The recipe as TOML, all defaults written out.
    ///
    /// # Errors
    /// Never for a recipe that was read.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string_pretty(self).map_err(|e| TrainError::Recipe(e.to_string()))
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// None of that name; the message has the nearest.
    pub fn stage(&self, name: &str) -> Result<&StageConfig, TrainError> {
        self.stages.iter().find(|stage| stage.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.stages.iter().map(|s| s.name.as_str()).collect();
            let near = nearest(name, names.iter().copied()).unwrap_or("");
            TrainError::Recipe(format!("no stage `{name}`; there are {names:?}; nearest: `{near}`"))
        })
    }

    /// Sizes of a stage that starts from no other model: its own, else those of the recipe.
    ///
    /// # Errors
    /// Neither are there.
    pub fn sizes<'a>(&'a self, stage: &'a StageConfig) -> Result<&'a ModelConfig, TrainError> {
        stage.model.as_ref().or(self.model.as_ref()).ok_or_else(|| {
            let at = &stage.name;
            TrainError::Recipe(format!(
                "stage `{at}`: needs the sizes of its model, [model], or `init` to start from one"
            ))
        })
    }

    fn validate(&self) -> Result<(), TrainError> {
        let fail = |message: String| Err(TrainError::Recipe(message));
        let data = [
            ("data.seq_len", self.data.seq_len as u64),
            ("data.vocab_size", self.data.vocab_size as u64),
            ("data.generated_words", self.data.generated_words as u64),
        ];
        let stages = self.stages.iter().flat_map(|stage| {
            let sizes = [
                ("steps", stage.steps),
                ("batch_size", stage.batch_size as u64),
                ("micro_batch", stage.micro_batch as u64),
                ("eval_sequences", stage.eval_sequences),
                ("loss.teacher_top_k", stage.loss.teacher_top_k as u64),
            ];
            sizes.map(|(key, value)| (format!("stage `{}`: {key}", stage.name), key, value))
        });
        for (place, key, value) in
            data.map(|(key, value)| (key.to_owned(), key, value)).into_iter().chain(stages)
        {
            let most = most(key);
            if value > most {
                return fail(format!("{place} is {value}, expected at most {most}"));
            }
        }
        if self.stages.is_empty() {
            return fail("no [[stage]]: add at least one".into());
        }
        if self.data.seq_len < 2 {
            return fail(format!("data.seq_len must be at least 2, got {}", self.data.seq_len));
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let at = format!("stage `{}`", stage.name);
            if stage.name.is_empty() || stage.name.contains(['/', '\\', '.']) {
                return fail(format!("{at}: a stage's name is a folder name; use letters, digits, - and _"));
            }
            if self.stages[..index].iter().any(|other| other.name == stage.name) {
                return fail(format!("{at} occurs twice"));
            }
            if stage.steps == 0 || stage.batch_size == 0 || stage.micro_batch == 0 {
                return fail(format!("{at}: steps, batch_size and micro_batch must be positive"));
            }
            if !stage.batch_size.is_multiple_of(stage.micro_batch) {
                return fail(format!(
                    "{at}: batch_size {} is not a multiple of micro_batch {}",
                    stage.batch_size, stage.micro_batch
                ));
            }
            if stage.eval_every == 0 || stage.save_every == 0 || stage.log_every == 0 {
                return fail(format!("{at}: eval_every, save_every and log_every must be positive"));
            }
            let loss = &stage.loss;
            if !(0.0..=1.0).contains(&loss.gamma) || loss.temperature.is_nan() || loss.temperature <= 0.0 {
                return fail(format!("{at}: loss.gamma must lie in 0..=1 and loss.temperature be positive"));
            }
            if !(stage.learning_rate > 0.0 && stage.learning_rate.is_finite()) {
                return fail(format!("{at}: learning_rate must be positive, got {}", stage.learning_rate));
            }
            let needs = |what: &str| fail(format!("{at}: kind {:?} needs `{what}`", stage.kind));
            match stage.kind {
                StageKind::Pretrain if !stage.teachers.is_empty() => {
                    return fail(format!("{at}: a pretrain stage has no teachers; make it `distill`"));
                }
                StageKind::Distill if stage.teachers.is_empty() => return needs("teachers"),
                StageKind::Qat if stage.init.is_none() => return needs("init"),
                StageKind::Qat if stage.quant.is_none() => return needs("quant"),
                StageKind::Pretrain | StageKind::Distill if stage.quant.is_some() => {
                    return fail(format!("{at}: `quant` belongs to a qat stage"));
                }
                _ => {}
            }
            if stage.init.is_none() {
                let sizes = self.sizes(stage)?;
                sizes.spec(self.data.vocab_size)?;
                if sizes.max_position_embeddings < self.data.seq_len {
                    return fail(format!(
                        "{at}: data.seq_len {} is longer than the model's max_position_embeddings {}",
                        self.data.seq_len, sizes.max_position_embeddings
                    ));
                }
            }
            if let Some(name) = stage.init.iter().chain(&stage.teachers).find(|&name| {
                self.stages[index..].iter().any(|later| &later.name == name)
                    && !self.stages[..index].iter().any(|earlier| &earlier.name == name)
            }) {
                return fail(format!("{at}: stage `{name}` must come before the stages that use it"));
            }
            if loss.alignment != 0.0 && stage.teachers.is_empty() {
                return fail(format!("{at}: loss.alignment needs a teacher of the student's shape"));
            }
            if let Some(quant) = &stage.quant {
                quant.plan(self.data.seq_len, self.seed)?;
                quant.quantizer()?;
            }
        }
        Ok(())
    }
}

/// Largest value of a key; anything above is a mistake, and could not be held in memory.
fn most(key: &str) -> u64 {
    match key {
        "data.seq_len" | "batch_size" | "micro_batch" => 1 << 20,
        "data.vocab_size" | "loss.teacher_top_k" => 1 << 24,
        "data.generated_words" | "eval_sequences" => 1 << 32,
        _ => 1 << 40,
    }
}

/// Keys of a stage that have another name today.
const RENAMED: [(&str, &str); 1] = [("step_learning_rate", "scale_learning_rate")];

/// Renames such keys; gives (stage, old name, new name) of each.
fn renamed_keys(table: &mut toml::Table) -> impl Iterator<Item = (String, &'static str, &'static str)> {
    let stages = table.get_mut("stage").and_then(toml::Value::as_array_mut).into_iter().flatten();
    stages.filter_map(toml::Value::as_table_mut).flat_map(|stage| {
        let name = stage.get("name").and_then(toml::Value::as_str).unwrap_or("?").to_owned();
        RENAMED.into_iter().filter_map(move |(old, new)| {
            let value = stage.remove(old)?;
            stage.insert(new.to_owned(), value);
            Some((name.clone(), old, new))
        })
    })
}

/// Applies `a.b.c=value`; the value is TOML, or a string if it is not valid TOML.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), TrainError> {
    let bad = |why: &str| TrainError::Recipe(format!("--set {setting}: {why}"));
    let (path, value) = setting.split_once('=').ok_or_else(|| bad("expected key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("x = {}", value.trim()))
        .ok()
        .and_then(|mut t| t.remove("x"))
        .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| bad("expected key=value"))?;
    let mut at = table;
    let mut keys = keys.into_iter();
    while let Some(key) = keys.next() {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match entry {
            toml::Value::Table(inner) => inner,
            toml::Value::Array(list) => {
                let name = keys.next().ok_or_else(|| bad("name the stage: stage.NAME.key=value"))?;
                list.iter_mut()
                    .filter_map(toml::Value::as_table_mut)
                    .find(|t| t.get("name").and_then(toml::Value::as_str) == Some(name))
                    .ok_or_else(|| bad(&format!("no `{key}` is named `{name}`")))?
            }
            _ => return Err(bad(&format!("`{key}` is not a table"))),
        };
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Replaces a leading or inner `$NAME` by the environment variable, and a leading `~/` by the home folder.
///
/// # Errors
/// A variable that is not set.
pub fn expand(path: &str) -> Result<PathBuf, TrainError> {
    let mut out = String::new();
    let mut rest = path;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let name: String = rest[at + 1..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let value = std::env::var(&name).map_err(|_| {
            TrainError::Recipe(format!(
                "{path}: the environment variable {name} is not set; set it to your data folder"
            ))
        })?;
        out.push_str(&value);
        rest = &rest[at + 1 + name.len()..];
    }
    out.push_str(rest);
    Ok(PathBuf::from(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_quant::ActPoint;
    use squat_quant::token_policy::TokenPolicy;

    const RECIPE: &str = r#"
name = "t"
[data]
train = ["generated"]
valid = ["generated"]
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
[[stage]]
name = "fp"
kind = "pretrain"
steps = 10
learning_rate = 1e-3
[[stage]]
name = "q"
kind = "qat"
init = "fp"
teachers = ["fp"]
steps = 5
learning_rate = 1e-4
quant = { plan = "w4a8", points = { lm_head_input = "fp" } }
"#;

    #[test]
    fn settings_reach_stages_by_name() {
        let settings =
            ["stage.q.steps=7".to_owned(), "data.seq_len=64".into(), "stage.q.quant.plan=rho50".into()];
        let recipe = Recipe::parse(RECIPE, &settings).unwrap();
        assert_eq!((recipe.stages[1].steps, recipe.data.seq_len), (7, 64));
        let plan = recipe.stages[1].quant.as_ref().unwrap().plan(64, 1).unwrap();
        assert_eq!(plan.policy, TokenPolicy::SinkAttention);
        assert_eq!(plan.point(ActPoint::LmHeadInput), None);
        // The output of `to_toml` reads back.
        let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(again.to_toml().unwrap(), recipe.to_toml().unwrap());
    }

    #[test]
    fn former_names_of_points_are_read() {
        let former = RECIPE.replace("lm_head_input", "head_in");
        let recipe = Recipe::parse(&former, &[]).unwrap();
        let plan = recipe.stages[1].quant.as_ref().unwrap().plan(64, 1).unwrap();
        assert_eq!(plan.point(ActPoint::LmHeadInput), None);
        let both = former.replace("head_in = \"fp\"", "head_in = \"fp\", lm_head_input = \"static\"");
        let error = Recipe::parse(&both, &[]).unwrap_err().to_string();
        assert!(error.contains("the same point"), "{error}");
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let error =
            Recipe::parse(&RECIPE.replace("learning_rate = 1e-3", "learning_rat = 1e-3"), &[]).unwrap_err();
        assert!(error.to_string().contains("did you mean `learning_rate`"), "{error}");
        let error = Recipe::parse(RECIPE, &["data.seq_length=3".into()]).unwrap_err();
        assert!(error.to_string().contains("did you mean `seq_len`"), "{error}");
    }

    #[test]
    fn a_renamed_key_is_refused_with_its_new_name_and_read_from_the_recipe_of_a_run() {
        let old = RECIPE.replace("learning_rate = 1e-4", "learning_rate = 1e-4\nstep_learning_rate = 2e-3");
        let error = Recipe::parse(&old, &[]).unwrap_err().to_string();
        assert!(error.contains("stage `q`") && error.contains("`scale_learning_rate`"), "{error}");
        assert!(Recipe::parse(RECIPE, &["stage.q.step_learning_rate=1e-3".into()]).is_err());
        let new = old.replace("step_learning_rate", "scale_learning_rate");
        let (new, resolved) = (Recipe::parse(&new, &[]).unwrap(), Recipe::parse_resolved(&old).unwrap());
        assert_eq!(new.stages[1].scale_learning_rate, 2e-3);
        assert_eq!(resolved.to_toml().unwrap(), new.to_toml().unwrap());
    }

    #[test]
    fn sizes_are_needed_where_nothing_else_says_them() {
        let start = RECIPE.find("[model]").unwrap();
        let end = RECIPE.find("[[stage]]").unwrap();
        let without = RECIPE.replacen(&RECIPE[start..end], "", 1);
        let error = Recipe::parse(&without, &[]).unwrap_err().to_string();
        assert!(error.contains("stage `fp`") && error.contains("[model]"), "{error}");
        let from_folder =
            without.replacen("learning_rate = 1e-3", "learning_rate = 1e-3\ninit = \"a-model\"", 1);
        let recipe = Recipe::parse(&from_folder, &[]).unwrap();
        assert!(recipe.model.is_none());
        assert_eq!(
            Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap().to_toml().unwrap(),
            recipe.to_toml().unwrap()
        );
    }

    #[test]
    fn absurd_numbers_are_refused_with_the_range() {
        for (setting, words) in [
            (
                "stage.fp.batch_size=4294967296",
                "stage `fp`: batch_size is 4294967296, expected at most 1048576",
            ),
            ("data.seq_len=99999999999", "data.seq_len is 99999999999, expected at most"),
            ("data.vocab_size=99999999999", "data.vocab_size is"),
            ("stage.q.loss.teacher_top_k=99999999999", "stage `q`: loss.teacher_top_k is"),
        ] {
            let error = Recipe::parse(RECIPE, &[setting.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (from, to, word) in [
            ("kind = \"pretrain\"", "kind = \"distill\"", "teachers"),
            ("init = \"fp\"\n", "", "init"),
            ("steps = 10", "steps = 0", "steps"),
            ("steps = 10", "steps = 10\nbatch_size = 10", "multiple"),
            ("lm_head_input", "lm_haed_input", "lm_head_input"),
            ("w4a8", "w4a9", "w4a8"),
            ("points =", "quantizer = \"lsqlog\", points =", "`lsq-log`"),
        ] {
            let error = Recipe::parse(&RECIPE.replacen(from, to, 1), &[]).unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn variables_expand_or_are_named() {
        assert!(expand("$SQUAT_NO_SUCH/x").unwrap_err().to_string().contains("SQUAT_NO_SUCH"));
        assert_eq!(expand("plain/x").unwrap(), PathBuf::from("plain/x"));
    }
}
