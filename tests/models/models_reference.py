"""The slow and obvious way: every state alone through the model."""

import torch

from sequencematch.mdp import Trajectory, states
from sequencematch.objectives import Steps

PROMPTS = [(4, 5), (6,), (1, 2, 3, 4), (7, 8)]


def sample_walks(space, seed=0, count=8, source=None):
    """Random legal walks, about a third deletions: long ones from one prompt, short ones from three others."""
    generator = torch.Generator().manual_seed(seed)
    walks = []
    for index in range(count):
        terminated = index % 3 != 2
        prompt = PROMPTS[index % len(PROMPTS)]
        taken, length = [], 0
        while len(taken) < (12 if prompt == PROMPTS[0] else 5):
            deletes = torch.rand((), generator=generator) < 0.35
            pool = list(space.by_token) if deletes else list(range(1, space.vocab_size))
            action = pool[torch.randint(len(pool), (), generator=generator)]
            if action in space.by_token and not (deletes and space.is_legal(action, length)):
                continue
            taken.append(action)
            length = space.next_length(action, length)
        taken += [space.eos_token_id] * terminated
        weights = torch.rand(len(taken), generator=generator).tolist()
        is_policy = index // 2 % 2 == 1 if source is None else source == "policy"
        origin = {"source": "policy", "policy_version": 0} if is_policy else {}
        walks.append(Trajectory(prompt, taken, weights, terminated, **origin))
    return walks


def nodes(batch):
    """The index and the string of every node that is not padding."""
    exits = batch.exit.tolist()
    for node, depth in enumerate(batch.depth.tolist()):
        if depth == 0 and exits[node] == node + 1:
            continue
        seen = [k for k in range(node + 1) if exits[k] > node]
        assert depth == len(seen) - 1
        yield node, tuple(batch.token[seen].tolist())


def logits_alone(model, string):
    """float [V]: the logits after this string, in a forward pass of its own."""
    return model(input_ids=torch.tensor([string]), use_cache=False).logits[0, -1]


def value_alone(logits, completion_length, space):
    """V(s): logsumexp over the actions that are legal there, listed one by one."""
    legal = [action for action in range(space.vocab_size) if space.is_legal(action, completion_length)]
    return logits[legal].logsumexp(-1)


def naive_steps(model, trajectories, space, terminal_value="learned"):
    """`Steps` by the definitions: one forward pass for each state of each trajectory."""
    rows = {name: [] for name in ("q", "v", "v_next", "t", "weight", "trajectory", "deletes")}
    terminal = []
    for index, trajectory in enumerate(trajectories):
        prompt = len(trajectory.prompt_ids)
        visited = list(states(trajectory, space))
        logits = [logits_alone(model, string) for string in visited]
        values = [value_alone(row, len(s) - prompt, space) for row, s in zip(logits, visited, strict=True)]
        if trajectory.terminated and terminal_value == "zero":
            values[-1] = torch.zeros(())
        for t, action in enumerate(trajectory.actions.tolist()):
            rows["q"].append(logits[t][action])
            rows["v"].append(values[t])
            rows["v_next"].append(values[t + 1])
            rows["t"].append(torch.tensor(t))
            rows["weight"].append(torch.tensor(trajectory.action_weights[t], dtype=torch.float32))
            rows["trajectory"].append(torch.tensor(index))
            deletions = [token for token in space.by_token if space.is_legal(token, len(visited[t]) - prompt)]
            rows["deletes"].append((logits[t][deletions] - values[t]).exp().sum().detach())
        terminal.append(values[-1])
    return Steps(
        **{name: torch.stack(values) for name, values in rows.items()},
        length=torch.tensor([len(trajectory) for trajectory in trajectories]),
        terminal_v=torch.stack(terminal),
        terminated=torch.tensor([trajectory.terminated for trajectory in trajectories]),
    )


def parameter_gradients(model, loss, retain_graph=True):
    """The gradient of every parameter; zeros for those the loss does not reach."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=retain_graph)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
