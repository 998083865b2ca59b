//! Every form of a model behind one trait, `squat_eval::LanguageModel`.

use anyhow::{Result, bail};
use squat_engine::{Engine, EngineOptions};
use squat_eval::{EvalError, Form, LanguageModel, Tokenize};
use squat_model::tokenizer::Tokenizer;
use squat_model::{ModelKind, OpenedModel};
use std::path::Path;

use crate::printer;

/// Number of threads for a request of `threads` (0: one for each core).
pub fn threads(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}

/// Opens the model at `path`, of any kind, and reports on stderr how contradictions between its files were resolved.
pub fn open_model(path: &Path) -> Result<OpenedModel> {
    let model = squat_model::open(path)?;
    model.notes().iter().for_each(|note| printer::note(&format!("{}: {note}", model.path().display())));
    Ok(model)
}

/// A model in the engine: packed, or in full precision.
pub struct EngineForm {
    engine: Engine,
    name: String,
    form: Form,
}

impl EngineForm {
    /// Loads an opened model.
    pub fn load(model: &OpenedModel, form: Form, threads: usize) -> Result<Self> {
        let engine = Engine::from_model(model, EngineOptions::threads(threads))?;
        Ok(Self { engine, name: model.path().display().to_string(), form })
    }
}

impl LanguageModel for EngineForm {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn form(&self) -> Form {
        self.form
    }

    fn vocab_size(&self) -> usize {
        self.engine.spec().vocab_size
    }

    fn max_length(&self) -> usize {
        self.engine.spec().max_position_embeddings
    }

    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        self.engine.log_likelihoods(sequences).map_err(EvalError::model)
    }
}

/// A model in training form: full precision or fake-quantized.
#[cfg(feature = "train")]
pub struct TrainingForm {
    evaluator: squat_train::evaluate::Evaluator,
    name: String,
    form: Form,
}

#[cfg(feature = "train")]
impl TrainingForm {
    /// Loads a checkpoint folder.
    pub fn load(path: &Path, form: Form, threads: usize) -> Result<Self> {
        let evaluator = squat_train::evaluate::Evaluator::load(path, form == Form::Fake, threads)?;
        Ok(Self { evaluator, name: path.display().to_string(), form })
    }
}

#[cfg(feature = "train")]
impl LanguageModel for TrainingForm {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn form(&self) -> Form {
        self.form
    }

    fn vocab_size(&self) -> usize {
        self.evaluator.model().spec.vocab_size
    }

    fn max_length(&self) -> usize {
        self.evaluator.max_seq()
    }

    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        self.evaluator.log_likelihoods(sequences).map_err(EvalError::model)
    }
}

/// A tokenizer with the BOS id that the evaluation needs.
pub struct ModelTokenizer {
    inner: Tokenizer,
    bos: u32,
}

impl ModelTokenizer {
    /// The tokenizer of an opened model.
    pub fn open(model: &OpenedModel) -> Result<Self> {
        let inner = model.tokenizer()?;
        let bos = inner.required_bos_id()?;
        if let Some(note) = inner.size_note() {
            printer::note(&note);
        }
        if model.adds_bos()? == Some(false) {
            printer::note(&format!(
                "the tokenizer adds no BOS token of its own; Squat begins every sequence with token {bos}"
            ));
        }
        Ok(Self { inner, bos })
    }

    /// The tokenizer itself.
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }
}

impl Tokenize for ModelTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
        // The one rule for BOS, also of a text that spells it out; the harness adds it again.
        Ok(self.inner.encode_prompt(text)?.split_off(1))
    }

    fn bos_id(&self) -> u32 {
        self.bos
    }
}

/// Loads a model and its tokenizer in parallel: for a small model they take equally long.
pub fn engine_and_tokenizer(model: &OpenedModel, threads: usize) -> Result<(Engine, ModelTokenizer)> {
    std::thread::scope(|scope| {
        // The tokenizer is read on this thread, which reuses the 5 MB that reading frees; another thread would keep them.
        let engine = scope.spawn(|| Engine::from_model(model, EngineOptions::threads(threads)));
        let tokenizer = ModelTokenizer::open(model);
        // Errors of the model come first.
        let engine = engine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((engine, tokenizer?))
    })
}

/// A model to evaluate, with its tokenizer.
pub struct Subject {
    /// The model in the requested form.
    pub model: Box<dyn LanguageModel>,
    /// Its tokenizer.
    pub tokenizer: ModelTokenizer,
}

/// Opens `path` in `form`, or in the form that it holds.
pub fn open(path: &Path, form: Option<Form>, threads: usize) -> Result<Subject> {
    let opened = open_model(path)?;
    let path = opened.path().to_path_buf();
    let packed = opened.kind() == ModelKind::Packed;
    let form = form.unwrap_or(match opened.kind() {
        ModelKind::Packed => Form::Packed,
        ModelKind::Checkpoint => Form::Fake,
        ModelKind::FullPrecision => Form::Fp,
    });
    let tokenizer = ModelTokenizer::open(&opened)?;
    let model: Box<dyn LanguageModel> = match (form, packed) {
        (Form::Packed, true) => Box::new(EngineForm::load(&opened, form, threads)?),
        (Form::Packed, false) => {
            bail!("{} is not packed; pack it first: squat pack {} --out DIR", path.display(), path.display())
        }
        (_, true) => bail!(
            "{} is packed: only --form packed can be evaluated; give the run it was packed from for --form {form}",
            path.display()
        ),
        (Form::Fake, false) if opened.kind() == ModelKind::FullPrecision => bail!(
            "{} has no quantization plan, so there is no fake-quantized form; pack it, or give --form fp",
            path.display()
        ),
        // The trainer reads folders of the architectures that it trains; in full precision the engine computes the same
        // up to rounding.
        #[cfg(feature = "train")]
        (Form::Fp, false)
            if !path.is_dir() || squat_train::model::check_trainable(opened.spec()).is_err() =>
        {
            Box::new(EngineForm::load(&opened, form, threads)?)
        }
        #[cfg(feature = "train")]
        (_, false) => Box::new(TrainingForm::load(&path, form, threads)?),
        #[cfg(not(feature = "train"))]
        (Form::Fp, false) => Box::new(EngineForm::load(&opened, form, threads)?),
        #[cfg(not(feature = "train"))]
        (Form::Fake, false) => bail!("this build has no fake-quantized form; build with the feature `train`"),
    };
    Ok(Subject { model, tokenizer })
}
