//! A checkpoint's `scheduler/scheduler_config.json`, and the noise levels that follow from it.

use serde::Deserialize;

use crate::common::{Sampler, Schedule};

/// What the network was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity of [Salimans & Ho](https://arxiv.org/abs/2202.00512).
    VPrediction,
}

/// Which of the training timesteps a run visits: table 2 of [Lin et al.](https://arxiv.org/abs/2305.08891).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSpacing {
    /// Evenly from the last to the first, both included.
    Linspace,
    /// Multiples of the step width, from the first on; the last is missed.
    Leading,
    /// Multiples of the step width, back from the last.
    Trailing,
}

/// How the noise grows over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    #[default]
    Linear,
    /// Evenly in the square root; all Stable Diffusion models.
    ScaledLinear,
    /// The cosine of [Nichol & Dhariwal](https://arxiv.org/abs/2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// Which noise level comes after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// None.
    #[default]
    Zero,
    /// That of the first training timestep.
    SigmaMin,
}

/// `scheduler_config.json`, with the defaults of diffusers for what it leaves out. A field is an `Option` where diffusers'
/// scheduler classes have different defaults for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "the fields are the file's")]
pub struct SchedulerConfig {
    /// diffusers' name of the checkpoint's own scheduler.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Number of timesteps in training.
    pub num_train_timesteps: usize,
    /// Beta of the first timestep.
    pub beta_start: f64,
    /// Beta of the last timestep.
    pub beta_end: f64,
    /// How betas grow from one to the other.
    pub beta_schedule: BetaSchedule,
    /// Betas given one by one.
    pub trained_betas: Option<Vec<f64>>,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps a run visits.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// PNDM: whether a run begins without Runge-Kutta steps. Every run here does.
    pub skip_prk_steps: bool,
    /// Added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether the last timestep is nothing but noise ([Lin et al.](https://arxiv.org/abs/2305.08891), algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// Whether the last step leaves no noise, for the samplers of `alphas.rs`.
    pub set_alpha_to_one: Option<bool>,
    /// Whether those samplers clamp x0.
    pub clip_sample: Option<bool>,
    /// The clamp's range on both sides of 0.
    pub clip_sample_range: f64,
    /// Whether x0 is clamped to a quantile. Refused: no latent diffusion model has it.
    pub thresholding: bool,
    /// The noise level after the last step.
    pub final_sigmas_type: FinalSigmas,
    /// DPM-Solver++: whether short runs end with a step of first order.
    pub lower_order_final: Option<bool>,
    /// DPM-Solver++: whether every run ends with a step of first order.
    pub euler_at_final: bool,
    /// Whether the checkpoint asks for Karras sigmas.
    pub use_karras_sigmas: bool,
    /// Whether it asks for sigmas that fall exponentially.
    pub use_exponential_sigmas: bool,
    /// Whether it asks for sigmas spaced by the quantiles of a beta distribution.
    pub use_beta_sigmas: bool,
    /// DPM-Solver: its variant.
    pub algorithm_type: Option<String>,
    /// LCM, TCD: number of steps of the distilled model's teacher. A run has at most as many.
    pub original_inference_steps: usize,
    /// LCM: factor of timesteps in the boundary condition.
    pub timestep_scaling: f64,
    /// Whether the model is an SDXL, which has its own table of [`Schedule::AlignYourSteps`].
    #[serde(skip)]
    pub is_xl: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            skip_prk_steps: false,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            thresholding: false,
            final_sigmas_type: FinalSigmas::Zero,
            lower_order_final: None,
            euler_at_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            algorithm_type: None,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            is_xl: false,
        }
    }
}

/// Fields that change samplers in unsupported ways, with the values that do not.
const UNSUPPORTED: [(&str, &[&str]); 13] = [
    ("algorithm_type", &["\"dpmsolver++\"", "\"sde-dpmsolver++\"", "\"deis\""]),
    ("disable_corrector", &["[]"]),
    ("interpolation_type", &["\"linear\""]),
    ("lambda_min_clipped", &["\"-Infinity\""]),
    ("predict_x0", &["true"]),
    ("sigma_max", &[]),
    ("sigma_min", &[]),
    ("solver_order", &["2"]),
    ("solver_type", &["\"midpoint\"", "\"bh2\"", "\"logrho\""]),
    ("timestep_type", &["\"discrete\""]),
    ("use_flow_sigmas", &["false"]),
    ("use_lu_lambdas", &["false"]),
    ("variance_type", &["\"fixed_small\""]),
];
/// Beginnings of the names of schedulers for models with another kind of training.
const OTHER_MODELS: [&str; 3] = ["FlowMatch", "FlowMap", "EDM"];

impl SchedulerConfig {
    /// Reads and checks `scheduler_config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, or asks for something unsupported.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut raw = python_json(json)?;
        // As in diffusers, null counts as left out.
        raw.retain(|_, value| !value.is_null());
        let class = raw.get("_class_name").and_then(serde_json::Value::as_str).unwrap_or_default();
        if OTHER_MODELS.iter().any(|start| class.starts_with(start)) {
            return Err(format!("{class} is for models of another kind, whose samplers are not supported"));
        }
        for (field, supported) in UNSUPPORTED {
            match raw.get(field).map(ToString::to_string) {
                Some(value) if !supported.contains(&value.as_str()) => return Err(format!("{field} = {value} is not supported")),
                _ => {}
            }
        }
        let config: Self = serde_path_to_error::deserialize(serde_json::Value::Object(raw)).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// The checkpoint's own sampler, if it is supported.
    #[must_use]
    pub fn own_sampler(&self) -> Option<Sampler> {
        match (self.class_name.as_str(), self.algorithm_type.as_deref()) {
            ("DPMSolverMultistepScheduler", Some("sde-dpmsolver++")) => Some(Sampler::Dpmpp2mSde),
            // With another algorithm, this class solves an ODE.
            ("DPMSolverSinglestepScheduler", Some("sde-dpmsolver++")) => Some(Sampler::DpmppSde),
            (class, _) => class.parse().ok(),
        }
    }

    /// The checkpoint's own schedule for a sampler. It is the default one if the sampler's class in diffusers has no other.
    #[must_use]
    pub fn own_schedule(&self, sampler: Sampler) -> Schedule {
        let own = match (self.use_karras_sigmas, self.use_exponential_sigmas, self.use_beta_sigmas) {
            (true, _, _) => Schedule::Karras,
            (_, true, _) => Schedule::Exponential,
            (_, _, true) => Schedule::Beta,
            _ => Schedule::Default,
        };
        if sampler == Sampler::EulerAncestral || sampler.check_schedule(own).is_err() { Schedule::Default } else { own }
    }

    /// The most steps that a sampler can take.
    #[must_use]
    pub fn most_steps(&self, sampler: Sampler) -> usize {
        if sampler.is_distilled() { self.teacher_steps() } else { self.num_train_timesteps }
    }

    /// The most steps of a distilled model.
    pub(super) fn teacher_steps(&self) -> usize {
        self.original_inference_steps.clamp(1, self.num_train_timesteps)
    }

    fn check(&self) -> Result<(), String> {
        let is_beta = |beta: &f64| *beta > 0.0 && *beta < 1.0;
        if !(1..=100_000).contains(&self.num_train_timesteps) {
            Err(format!("num_train_timesteps must be from 1 to 100000, not {}", self.num_train_timesteps))
        } else if !is_beta(&self.beta_start) || !is_beta(&self.beta_end) {
            Err(format!("beta_start and beta_end must be between 0 and 1, not {} and {}", self.beta_start, self.beta_end))
        } else if self.trained_betas.as_ref().is_some_and(|b| b.len() != self.num_train_timesteps || !b.iter().all(is_beta)) {
            Err("trained_betas must be num_train_timesteps numbers between 0 and 1".to_owned())
        } else if self.thresholding {
            Err("thresholding is not supported: it is meant for models that work on pixels".to_owned())
        } else {
            Ok(())
        }
    }

    /// The picture's share of the variance at each training timestep, falling from almost 1 to almost 0, or to 0 with
    /// `rescale_betas_zero_snr`. The values are rounded like diffusers' tables in f32, so that timesteps computed from them round alike.
    #[must_use]
    pub fn alphas_cumprod(&self) -> Vec<f64> {
        let mut product = 1.0;
        let mut alphas_cumprod: Vec<f64> = self
            .betas()
            .iter()
            .map(|beta| {
                product *= f64::from(1.0 - beta);
                f64::from(product as f32)
            })
            .collect();
        if self.rescale_betas_zero_snr {
            rescale_to_zero_snr(&mut alphas_cumprod);
        }
        alphas_cumprod
    }

    fn betas(&self) -> Vec<f32> {
        let n = self.num_train_timesteps;
        let (start, end) = (self.beta_start, self.beta_end);
        if let Some(betas) = &self.trained_betas {
            return betas.iter().map(|beta| *beta as f32).collect();
        }
        match self.beta_schedule {
            BetaSchedule::Linear => torch_linspace(start as f32, end as f32, n),
            BetaSchedule::ScaledLinear => {
                torch_linspace(start.sqrt() as f32, end.sqrt() as f32, n).into_iter().map(|root| root * root).collect()
            }
            BetaSchedule::SquaredCosine => {
                let alpha_bar = |t: f64| ((t / n as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                (0..n).map(|t| (1.0 - alpha_bar((t + 1) as f64) / alpha_bar(t as f64)).min(0.999) as f32).collect()
            }
        }
    }
}

/// Python writes `-Infinity` into JSON for the limits of diffusers' DPM-Solvers. It becomes a string.
fn python_json(json: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    const NO_LIMIT: &str = "-Infinity";
    let quoted = format!("\"{NO_LIMIT}\"");
    let text = str::from_utf8(json).map_err(|error| error.to_string())?;
    serde_json::from_str(&text.replace(&quoted, NO_LIMIT).replace(NO_LIMIT, &quoted)).map_err(|error| error.to_string())
}

/// Shifts and scales the signal to 0 at the last timestep, and leaves the first unchanged.
fn rescale_to_zero_snr(alphas_cumprod: &mut [f64]) {
    let (Some(first), Some(last)) = (alphas_cumprod.first().map(|a| a.sqrt()), alphas_cumprod.last().map(|a| a.sqrt())) else { return };
    if first <= last {
        return; // A single timestep has no range.
    }
    for alpha in alphas_cumprod {
        *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
    }
}

/// `count` numbers from `start` to `end`, both included, as `torch.linspace`, which counts from the nearer end.
fn torch_linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    let number = |i: usize| if i < count.div_ceil(2) { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 };
    (0..count).map(number).collect()
}

/// `count` numbers from `start` to `end`, both included, as `numpy.linspace`: one number is `start`.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count).map(|i| step.mul_add(i as f64, start)).collect()
}
