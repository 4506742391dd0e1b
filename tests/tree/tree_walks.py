"""Random trajectories with few letters and few prompts, so that their walks meet; and the strings of packed nodes."""

from hypothesis import strategies as st

from sequencematch.mdp import Trajectory

# 8, 9 and 10 delete 1, 3 and all.
wishes = st.lists(st.sampled_from([1, 1, 2, 3, 8, 8, 9, 10]), max_size=14)
prompts = st.sampled_from([(4,), (4, 5), (5, 5, 6), (4, 8, 0)])
cases = st.lists(st.tuples(prompts, wishes, st.booleans(), st.booleans(), st.floats(0, 1)), min_size=1, max_size=8)


def make(case, legal_walk, space):
    """The trajectory of a drawn case."""
    prompt, wished, terminated, policy, weight = case
    actions = legal_walk(wished, space, terminated)
    source = {"source": "policy", "policy_version": 1} if policy else {}
    return Trajectory(prompt, actions, [weight] * len(actions), terminated, **source)


def row_spans(tiles):
    """(start, end) of each row, in flat node indices."""
    spans, start = [], 0
    for rows, length in tiles:
        for _ in range(rows):
            spans.append((start, start + length))
            start += length
    return spans


def string_at(batch, node):
    """The string of a node: the tokens of all that it attends to."""
    return tuple(batch.token[k].item() for k in range(int(node) + 1) if batch.exit[k] > node)
