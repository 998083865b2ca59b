//! The inputs of a stage: student, plan, teachers and sequences, checked against one another.

use super::RunOptions;
use super::data::RunData;
use crate::basis::Bases;
use crate::checkpoint::{self, Loaded};
use crate::device::is_cpu;
use crate::error::TrainError;
use crate::execution::Execution;
use crate::model::initial_parameters;
use crate::quantizer::{WeightQuantizer, default_quantizer};
use crate::recipe::{MixedPrecision, Recipe, StageConfig, StageKind, expand};
use crate::stage::{StageData, StageInput};
use crate::step::Teacher;
use squat_data::batch::Start;
use squat_data::{Chunks, Sequential};
use squat_model::{ModelSpec, QuantPlan, TokenizerFiles};
use std::path::PathBuf;

/// One stage of a recipe, to be assembled.
pub(super) struct Assembly<'a> {
    pub recipe: &'a Recipe,
    pub config: &'a StageConfig,
    pub data: &'a RunData,
    pub options: &'a RunOptions,
}

impl<'a> Assembly<'a> {
    /// Everything that the stage needs.
    pub fn stage_input(&self, fingerprint: String) -> Result<StageInput<'a>, TrainError> {
        let Self { recipe, config, data, options } = *self;
        let seq_len = recipe.data.seq_len;
        let mut student = self.student()?;
        self.check_device()?;
        let (plan, quantizer) = self.plan(&student)?;
        // A quantized model starts a new quantized stage from its weights.
        student = student.without_quantizers();
        let teachers = self.teachers(&student.spec)?;
        let start = if recipe.data.start_at_line { Start::Line } else { Start::Anywhere };
        let train = Chunks::new(&data.train.shards, seq_len, recipe.seed)?.starting(start);
        let valid = Sequential::new(&data.valid.shards, seq_len)?;
        let mut execution: Execution = options.execution.clone();
        if !is_cpu(&execution.device) {
            // Another device does its own scheduling.
            execution.threads = 1;
        }
        Ok(StageInput {
            config,
            student,
            plan,
            quantizer,
            bases: Bases::new(),
            teachers,
            data: StageData { train, valid },
            seq_len,
            tokenizer: TokenizerFiles::read(&data.tokenizer)?,
            folder: options.folder.join(&config.name),
            fingerprint,
            execution,
            budget: None,
        })
    }

    /// The model that is trained, as it is before the stage.
    fn student(&self) -> Result<Loaded, TrainError> {
        let Self { recipe, config, data, .. } = *self;
        let vocab_size = data.train.manifest.vocab_size;
        let student = match &config.init {
            Some(name) => checkpoint::load(&self.named_model(name)?)?,
            None => {
                let spec = recipe.sizes(config)?.spec(vocab_size)?;
                let parameters = initial_parameters(&spec, config.init_std, recipe.seed);
                Loaded::full_precision(spec, parameters)
            }
        };
        if student.spec.vocab_size < vocab_size {
            return Err(self.refused(format!(
                "its model has a vocabulary of {}, the tokenizer {vocab_size}; give data.tokenizer the model's own \
                 tokenizer",
                student.spec.vocab_size
            )));
        }
        if student.spec.max_position_embeddings < recipe.data.seq_len {
            return Err(self.refused(format!(
                "data.seq_len {} is longer than the model's max_position_embeddings {}",
                recipe.data.seq_len, student.spec.max_position_embeddings
            )));
        }
        if student.plan.is_some() && config.kind != StageKind::Qat {
            return Err(
                self.refused("it trains in full precision but starts from a quantized checkpoint".into())
            );
        }
        Ok(student)
    }

    /// Whether the device has the numbers that the stage wants.
    fn check_device(&self) -> Result<(), TrainError> {
        let device = &self.options.execution.device;
        if self.config.mixed_precision == MixedPrecision::Bf16
            && !is_cpu(device)
            && !device.supports_dtype(burn::tensor::FloatDType::BF16)
        {
            return Err(self.refused(
                "mixed_precision bf16: this device has no bf16; use mixed_precision = \"no\"".into(),
            ));
        }
        Ok(())
    }

    /// The plan of a qat stage, and its weight quantizer.
    fn plan(
        &self,
        student: &Loaded,
    ) -> Result<(Option<QuantPlan>, &'static dyn WeightQuantizer), TrainError> {
        let quant = self.config.quant.as_ref().filter(|_| self.config.kind == StageKind::Qat);
        let Some(quant) = quant else { return Ok((None, default_quantizer())) };
        let plan = quant.plan(self.recipe.data.seq_len, self.recipe.seed)?.for_model(&student.spec);
        plan.validate(&student.spec)?;
        Ok((Some(plan), quant.quantizer()?))
    }

    /// Frozen teachers, checked against the student and across processes.
    fn teachers(&self, student: &ModelSpec) -> Result<Vec<Teacher>, TrainError> {
        let Self { recipe, config, options, .. } = *self;
        let Execution { threads, device, group, .. } = &options.execution;
        let mut teachers = Vec::new();
        for name in &config.teachers {
            let loaded = checkpoint::load(&self.named_model(name)?)?;
            self.check_teacher(name, &loaded.spec, student, teachers.is_empty())?;
            if group.world() > 1 {
                group.assert_equal("teachers", &loaded.parameters.digest())?;
            }
            let teacher = Teacher::new(loaded, config.teacher_dtype, recipe.data.seq_len, device, *threads);
            let mut teacher = teacher.map_err(|error| self.refused(format!("teacher `{name}`: {error}")))?;
            teacher.model.mixed_precision = config.mixed_precision;
            teachers.push(teacher);
        }
        Ok(teachers)
    }

    fn check_teacher(
        &self,
        name: &str,
        teacher: &ModelSpec,
        student: &ModelSpec,
        first: bool,
    ) -> Result<(), TrainError> {
        if teacher.vocab_size != student.vocab_size {
            return Err(self.refused(format!(
                "teacher `{name}` has a vocabulary of {}, the student {}; they must share a tokenizer",
                teacher.vocab_size, student.vocab_size
            )));
        }
        let maps = |spec: &ModelSpec| (spec.num_hidden_layers, spec.num_attention_heads);
        if first && self.config.loss.alignment != 0.0 && maps(student) != maps(teacher) {
            let ((t_layers, t_heads), (s_layers, s_heads)) = (maps(teacher), maps(student));
            return Err(self.refused(format!(
                "loss.alignment compares attention maps layer by layer and head by head, but the first teacher has \
                 {t_layers} layers of {t_heads} heads and the student {s_layers} of {s_heads}"
            )));
        }
        Ok(())
    }

    /// The folder of a model that the stage names: an earlier stage, or a path.
    fn named_model(&self, name: &str) -> Result<PathBuf, TrainError> {
        if !self.recipe.stages.iter().any(|stage| stage.name == name) {
            return Ok(squat_model::open::locate(&expand(name)?)?);
        }
        let found = checkpoint::locate_stage(&self.options.folder, name);
        if found.join("config.json").is_file() {
            return Ok(found);
        }
        Err(TrainError::Recipe(format!(
            "stage `{name}` has no checkpoint yet; it must come before the stages that use it"
        )))
    }

    fn refused(&self, message: String) -> TrainError {
        TrainError::Recipe(format!("stage `{}`: {message}", self.config.name))
    }
}
