//! What a client need not ask again: values by key, for as long as a policy says.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::{Client, ClientError};

/// When a value is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Every time.
    Always,
    /// After it was used so many times.
    Count(u32),
    /// After this time.
    Time(Duration),
    /// When the cache is unlocked: until then everybody sees what was read first.
    Lock,
}

#[derive(Debug, Clone)]
struct Kept {
    value: Option<Bytes>,
    asked_at: Instant,
    used: u32,
}

/// Values with the time and number of their use. Pure.
#[derive(Debug, Clone)]
pub struct Cache {
    policy: Refresh,
    kept: BTreeMap<String, Kept>,
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(policy: Refresh) -> Self {
        Self { policy, kept: BTreeMap::new() }
    }

    /// The value of `key`, if it need not be asked for: `Some(None)` if it is known that there is none.
    #[must_use]
    pub fn look_up(&mut self, key: &str, now: Instant) -> Option<Option<Bytes>> {
        let kept = self.kept.get_mut(key)?;
        let good = match self.policy {
            Refresh::Always => false,
            Refresh::Count(count) => kept.used < count,
            Refresh::Time(time) => now.duration_since(kept.asked_at) < time,
            Refresh::Lock => true,
        };
        kept.used += u32::from(good);
        good.then(|| kept.value.clone())
    }

    /// Keeps a value that was read or written now. Reading counts as its first use.
    pub fn keep(&mut self, key: &str, value: Option<Bytes>, now: Instant) {
        if self.policy != Refresh::Always {
            self.kept.insert(key.to_owned(), Kept { value, asked_at: now, used: 1 });
        }
    }

    /// Forgets what may have changed by a write whose outcome is unknown.
    pub fn forget(&mut self, key: &str) {
        self.kept.remove(key);
    }

    /// Forgets everything.
    pub fn unlock(&mut self) {
        self.kept.clear();
    }
}

/// A client that asks only when its policy says so. Its own writes are in its cache.
#[derive(Debug)]
pub struct CachedClient {
    client: Client,
    cache: Cache,
}

impl CachedClient {
    /// `client` with an empty cache.
    #[must_use]
    pub fn new(client: Client, policy: Refresh) -> Self {
        Self { client, cache: Cache::new(policy) }
    }

    /// The value of `key`, as new as the policy says.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get(&mut self, key: &str) -> Result<Option<Bytes>, ClientError> {
        if let Some(value) = self.cache.look_up(key, Instant::now()) {
            return Ok(value);
        }
        let value = self.client.get(key).await?;
        self.cache.keep(key, value.clone(), Instant::now());
        Ok(value)
    }

    /// Gives `key` a value; returns whether it had one.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub async fn set(&mut self, key: &str, value: Bytes) -> Result<bool, ClientError> {
        self.cache.forget(key);
        let existed = self.client.set(key, value.clone()).await?;
        self.cache.keep(key, Some(value), Instant::now());
        Ok(existed)
    }

    /// Removes `key`; returns whether it was there.
    ///
    /// # Errors
    /// As [`Client::delete`].
    pub async fn delete(&mut self, key: &str) -> Result<bool, ClientError> {
        self.cache.forget(key);
        let existed = self.client.delete(key).await?;
        self.cache.keep(key, None, Instant::now());
        Ok(existed)
    }

    /// Forgets everything, so that each key is asked for again.
    pub fn unlock(&mut self) {
        self.cache.unlock();
    }

    /// The client itself, for what is not cached.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_asks_again_when_it_says() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let uses = |policy, moments: &[Instant]| {
            let mut cache = Cache::new(policy);
            assert_eq!(cache.look_up("k", now), None);
            cache.keep("k", None, now);
            moments.iter().filter(|at| cache.look_up("k", **at) == Some(None)).count()
        };
        assert_eq!(uses(Refresh::Always, &[now, later]), 0);
        assert_eq!(uses(Refresh::Count(3), &[now, now, now, later]), 2);
        assert_eq!(uses(Refresh::Time(Duration::from_millis(900)), &[now, now, later]), 2);
        assert_eq!(uses(Refresh::Lock, &[now, later]), 2);
        let mut locked = Cache::new(Refresh::Lock);
        locked.keep("k", Some(Bytes::from_static(b"v")), now);
        locked.unlock();
        assert_eq!(locked.look_up("k", now), None);
    }
}
