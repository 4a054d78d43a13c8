-- A bank in PostgreSQL: accounts 1 to :accounts, opened with :balance units each.
-- Half of every page stays free: new versions of a row find room beside the old ones, and the index is left alone.
CREATE TABLE account (
    id bigint PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50);

INSERT INTO account SELECT id, :balance FROM generate_series(1, :accounts) AS id;

-- Rows are locked in the order of their numbers, so that two transfers never wait for each other.
CREATE FUNCTION transfer(sender bigint, receiver bigint, amount bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF sender < receiver THEN
        UPDATE account SET balance = balance - amount WHERE id = sender AND balance >= amount;
        IF NOT FOUND THEN
            RETURN 'insufficient-balance';
        END IF;
        UPDATE account SET balance = balance + amount WHERE id = receiver;
    ELSE
        UPDATE account SET balance = balance + amount WHERE id = receiver;
        UPDATE account SET balance = balance - amount WHERE id = sender AND balance >= amount;
        IF NOT FOUND THEN
            UPDATE account SET balance = balance - amount WHERE id = receiver;
            RETURN 'insufficient-balance';
        END IF;
    END IF;
    RETURN 'committed';
END
$$;

VACUUM ANALYZE account;
