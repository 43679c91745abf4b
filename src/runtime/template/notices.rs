//! What the user is told while a template is made.

/// Tells the user.
pub trait Notices {
    /// One line about something that is not as it should be.
    fn warn(&self, line: &str);

    /// Something begins that takes long; it lasts until the result is dropped.
    fn begin(&self, line: &str) -> Ongoing;
}

/// Something that takes long.
pub struct Ongoing(Option<Box<dyn FnOnce()>>);

impl Ongoing {
    /// Calls `end` when it is over.
    pub fn new(end: impl FnOnce() + 'static) -> Self {
        Self(Some(Box::new(end)))
    }

    /// Nothing is to be done when it is over.
    pub fn silent() -> Self {
        Self(None)
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}
