//! `sd-worker selfcheck`.

use super::{Failure, SelfcheckArgs};

#[cfg(not(feature = "builtin-model"))]
/// A binary without the built-in model has nothing to compare.
///
/// # Errors
/// In every case.
pub fn selfcheck(_: &SelfcheckArgs) -> Result<(), Failure> {
    Err(Failure::Configuration("this binary has no built-in model to check itself with".to_owned()))
}

/// Prints the difference of each stage from diffusers, in every number format that the device supports.
///
/// # Errors
/// When the device cannot be used, the model does not work on it, or a difference exceeds its limit.
#[cfg(feature = "builtin-model")]
pub fn selfcheck(args: &SelfcheckArgs) -> Result<(), Failure> {
    use super::{printed, stdout};
    use crate::{
        backend::{self, LoadError},
        device,
        ops::WeightType,
    };

    let device = args.device.open().map_err(LoadError::from)?;
    let say = |line: String| stdout().line(line);
    say(format!("{} beside diffusers on a CPU in f32: largest difference / largest value", device::describe(&device)));
    say(format!("{:<6}{:<18}{:>8}{:>10}", "type", "stage", "error", "limit"));
    let (mut wrong, mut all) = (0, 0);
    for weight_type in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
        for comparison in backend::selfcheck(&device, weight_type)? {
            let verdict = if comparison.is_right() { "" } else { "  WRONG" };
            say(format!("{:<6}{:<18}{:>8.1e}{:>10.1e}{verdict}", weight_type.name(), comparison.stage, comparison.error, comparison.limit));
            (wrong, all) = (wrong + usize::from(!comparison.is_right()), all + 1);
        }
    }
    let said = printed();
    if wrong > 0 { Err(Failure::Selfcheck { wrong, all }) } else { said }
}
