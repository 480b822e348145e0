package durable

// Waits is, in SQL, that the session's COMMITs wait for a synchronous standby.
const Waits = `(current_setting('synchronous_standby_names', true) <> '' AND current_setting('synchronous_commit') NOT IN ('off', 'local'))`
