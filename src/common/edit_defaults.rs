//! Defaults of a request that begins with a picture.

use super::{InvalidValue, Steps, Strength};

/// diffusers' default strength without a mask. With one, the masked part is repainted completely.
const STRENGTH: f64 = 0.8;

impl Strength {
    /// The steps and the strength of an edit. A given value is never changed. If the defaults would leave no step to take, the strength
    /// gives way to given steps, or `steps`, the model's default, grows up to `most`: Turbo has one step by default, and 0.8 of it is none.
    #[must_use]
    pub fn with_steps(given: (Option<Steps>, Option<Self>), steps: Steps, most: Option<Steps>, has_mask: bool) -> (Steps, Self) {
        let whole = Self::of(1.0);
        let strength = given.1.unwrap_or(if has_mask { whole } else { Self::of(STRENGTH) });
        match given {
            (Some(steps), None) if strength.of_steps(steps) == 0 => (steps, whole),
            (None, _) if strength.of_steps(steps) == 0 => {
                // No number of steps suffices for a tiny strength; validation then refuses it and names the least one.
                let most = most.map_or(Steps::MAX as usize, Steps::get);
                let enough = (1..=Steps::MAX).filter_map(|steps| Steps::try_from(steps).ok()).take_while(|steps| steps.get() <= most);
                (enough.into_iter().find(|steps| strength.of_steps(*steps) > 0).unwrap_or(steps), strength)
            }
            _ => (given.0.unwrap_or(steps), strength),
        }
    }

    /// The steps of a schedule of which this share are `taken` steps, where there can be `most`.
    ///
    /// # Errors
    /// When there would be more.
    pub fn steps_to_take(self, taken: Steps, most: usize) -> Result<Steps, InvalidValue> {
        // Rounding in the division may come out on either side.
        let least = (taken.get() as f64 / self.get()) as i64;
        let enough = (least..=least.saturating_add(1))
            .filter_map(|steps| Steps::try_from(steps).ok())
            .find(|steps| self.of_steps(*steps) >= taken.get());
        enough.filter(|steps| steps.get() <= most).ok_or_else(|| {
            if taken.get() > most {
                return InvalidValue::new("steps", taken, format!("a whole number from 1 to {most} for this model with its sampler"));
            }
            // Rounded up to three decimals, so that the share is enough.
            let least = (1000.0 * taken.get() as f64 / most as f64).ceil() / 1000.0;
            InvalidValue::new("strength", self.get(), format!("at least {least} where {taken} steps are taken"))
        })
    }

    /// The number of steps taken, rounded down as in diffusers.
    pub(super) fn of_steps(self, steps: Steps) -> usize {
        ((steps.get() as f64 * self.get()) as usize).min(steps.get())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(steps: i64) -> Steps {
        steps.try_into().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_left_out_never_leaves_no_step(
            own in 1i64..60,
            given_steps in proptest::option::of(1i64..60),
            given_strength in proptest::option::of(0.001f64..=1.0),
            has_mask: bool,
        ) {
            let given = (given_steps.map(steps), given_strength.map(|strength| Strength::try_from(strength).unwrap()));
            let (steps, strength) = Strength::with_steps(given, steps(own), None, has_mask);
            prop_assert!(given.0.is_none_or(|given| given == steps) && given.1.is_none_or(|given| given == strength), "what is given stays");
            prop_assert!(given.0.is_some() && given.1.is_some() || strength.of_steps(steps) > 0);
            // And nothing changes for models of many steps.
            if own > 1 && given == (None, None) {
                prop_assert_eq!((steps, strength.get()), (self::steps(own), if has_mask { 1.0 } else { 0.8 }));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_share_of_a_schedule_is_as_many_steps_as_are_asked_for(taken in 1i64..=1000, strength in 0.0f64..=1.0) {
            let strength = Strength::try_from(strength).unwrap();
            match strength.steps_to_take(steps(taken), 1000) {
                Ok(all) => prop_assert_eq!(strength.of_steps(all), taken as usize),
                Err(_) => prop_assert!(strength.get() < taken as f64 / 999.0),
            }
        }
    }

    #[test]
    fn what_a_share_can_be_is_said() {
        let error =
            |strength: f64, taken, most| Strength::try_from(strength).unwrap().steps_to_take(steps(taken), most).unwrap_err().to_string();
        assert_eq!(error(0.5, 30, 50), "must be at least 0.6 where 30 steps are taken, not 0.5");
        assert_eq!(error(0.5, 60, 50), "must be a whole number from 1 to 50 for this model with its sampler, not 60");
    }

    #[test]
    fn a_turbo_takes_one_step_of_two() {
        let (two, strength) = Strength::with_steps((None, None), steps(1), None, false);
        assert_eq!((two.get(), strength.get(), strength.of_steps(two)), (2, 0.8, 1));
        let (one, all) = Strength::with_steps((Some(steps(1)), None), steps(1), None, false);
        assert_eq!((one.get(), all.get()), (1, 1.0));
        let little = Some(Strength::try_from(0.01).unwrap());
        let few = |most| Strength::with_steps((None, little), steps(4), most, false).0.get();
        assert_eq!([few(None), few(Some(steps(50)))], [100, 4], "no more than there are");
    }
}
