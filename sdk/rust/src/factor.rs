/// What a factor adds to one lead's score.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Finite, may be negative.
    pub points: f64,
    /// One short sentence that a sales person understands.
    pub reason: String,
}

impl Score {
    pub fn new(points: f64, reason: impl Into<String>) -> Self {
        Self { points, reason: reason.into() }
    }

    /// Nothing for or against the lead.
    pub fn none(reason: impl Into<String>) -> Self {
        Self::new(0.0, reason)
    }
}
