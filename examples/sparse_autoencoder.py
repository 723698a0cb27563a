"""A sparse autoencoder, trained with L-BFGS; every evaluation of its cost is one map call.

    python examples/sparse_autoencoder.py --hosts lab1,lab2 --iterations 50 --patches 1000
    python examples/sparse_autoencoder.py --slices-per-worker 4 --combine
    inv map examples.sparse_autoencoder              # the cost at the starting point

The network has 64 inputs, 30 hidden units and 64 outputs, tanh in both layers. It learns to give
back its input, an 8 x 8 picture, while each hidden unit is kept mostly off:

    J(theta) =   1/m  sum_i  1/2 |out_i - x_i|^2            how well m patches are given back
               + lambda/2 (|W1|^2 + |W2|^2)                 weight decay, not of the biases
               + beta  sum_j  KL(rho || rho_j)              sparsity

    KL(p || q) = p log(p/q) + (1 - p) log((1 - p)/(1 - q))

rho_j is the mean over all patches of (1 + a_j)/2: the activation a_j in (-1, 1) mapped to (0, 1),
because Kullback and Leibler's divergence is one of probabilities.

Source: A. Ng, "Sparse autoencoder", lecture notes of CS294A, Stanford University, 2011; L-BFGS:
D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale optimization",
Mathematical Programming 45, 1989, here SciPy's L-BFGS-B without bounds.

One pass over the data is enough, though the gradient of the sparsity needs rho_j, which is known
only after the pass. With d_j the derivative of the penalty by the sum over patches of a_j,

    dJ/dW1[j] gets  d_j  sum_i (1 - a_ij^2) x_i,

and the sum does not depend on rho_j. So `mapfunc` returns these sums as well, and `cost` combines.

Hosts need numpy; SciPy and scikit-learn are needed only here.
"""

import sys

import numpy

VISIBLE, HIDDEN = 64, 30
WEIGHT_DECAY = 1e-4  # lambda
SPARSITY = 0.05  # rho: how much of the time a hidden unit should be on
SPARSITY_WEIGHT = 0.1  # beta
PATCHES = 1000

_WEIGHTS = HIDDEN * VISIBLE
SIZE = 2 * _WEIGHTS + HIDDEN + VISIBLE  # numbers in theta


# --- on the hosts ------------------------------------------------------------------------------


def mapfunc(theta, patches):
    """The sums over these patches from which `cost` makes cost and gradient.

    theta: (SIZE,) float64. patches: (n, 64) float64, n >= 1. Returns one float64 vector, so that
    the default reduction adds it in one go; in this order:

        1                 sum of 1/2 |out - x|^2
        SIZE              gradient of that sum, laid out like theta
        HIDDEN            sum of a
        HIDDEN x VISIBLE  sum of (1 - a_j^2) x
        HIDDEN            sum of (1 - a_j^2)
    """
    w1, b1, w2, b2 = unpack(theta)
    hidden = numpy.tanh(patches.dot(w1.T) + b1)
    output = numpy.tanh(hidden.dot(w2.T) + b2)
    difference = output - patches
    slope = 1.0 - hidden * hidden
    at_output = difference * (1.0 - output * output)
    at_hidden = at_output.dot(w2) * slope
    return numpy.concatenate(
        [
            [0.5 * numpy.sum(difference * difference)],
            at_hidden.T.dot(patches).ravel(),
            at_hidden.sum(axis=0),
            at_output.T.dot(hidden).ravel(),
            at_output.sum(axis=0),
            hidden.sum(axis=0),
            slope.T.dot(patches).ravel(),
            slope.sum(axis=0),
        ]
    )


def unpack(theta):
    """W1 (30, 64), b1 (30,), W2 (64, 30), b2 (64,): views of theta."""
    w1, b1, w2, b2 = numpy.split(
        theta, numpy.cumsum([_WEIGHTS, HIDDEN, _WEIGHTS])
    )  # the last piece is the rest
    return w1.reshape(HIDDEN, VISIBLE), b1, w2.reshape(VISIBLE, HIDDEN), b2


# --- here --------------------------------------------------------------------------------------


def cost(theta, sums, count):
    """J(theta) and its gradient (SIZE,), from the sums of `mapfunc` over all `count` patches."""
    error, gradient, activation, slope_x, slope = numpy.split(
        sums, numpy.cumsum([1, SIZE, HIDDEN, _WEIGHTS])
    )
    w1, _, w2, _ = unpack(theta)
    rho = (1.0 + activation / count) / 2.0
    divergence = SPARSITY * numpy.log(SPARSITY / rho) + (1.0 - SPARSITY) * numpy.log(
        (1.0 - SPARSITY) / (1.0 - rho)
    )
    value = (
        error[0] / count
        + WEIGHT_DECAY / 2.0 * (numpy.sum(w1 * w1) + numpy.sum(w2 * w2))
        + SPARSITY_WEIGHT * numpy.sum(divergence)
    )
    gradient = gradient / count
    g1, gb1, g2, _ = unpack(gradient)
    # d rho_j / d (sum of a_j) = 1 / (2 count)
    penalty = SPARSITY_WEIGHT * (-SPARSITY / rho + (1.0 - SPARSITY) / (1.0 - rho)) / (2.0 * count)
    g1 += WEIGHT_DECAY * w1 + penalty[:, None] * slope_x.reshape(HIDDEN, VISIBLE)
    gb1 += penalty * slope
    g2 += WEIGHT_DECAY * w2
    return float(value), gradient


def start(seed=1):
    """A random theta: weights uniform in +-sqrt(6 / (inputs + outputs + 1)), biases 0."""
    random = numpy.random.RandomState(seed)
    reach = numpy.sqrt(6.0 / (VISIBLE + HIDDEN + 1))
    theta = numpy.zeros(SIZE)
    w1, _, w2, _ = unpack(theta)
    w1[:] = random.uniform(-reach, reach, w1.shape)
    w2[:] = random.uniform(-reach, reach, w2.shape)
    return theta


def digits(count=PATCHES, seed=1):
    """(count, 64) float64 in [-0.9, 0.9], where tanh can follow: handwritten digits, 8 x 8 each.

    scikit-learn ships 1797 of them (E. Alpaydin and C. Kaynak, "Optical recognition of handwritten
    digits", UCI Machine Learning Repository, 1998), used in their order. More are drawn from them
    at random, each shifted in a circle by up to one pixel either way and with a little noise."""
    from sklearn.datasets import load_digits

    pictures = load_digits().images * (1.8 / 16.0) - 0.9
    if count > len(pictures):
        random = numpy.random.RandomState(seed)
        further = pictures[random.randint(len(pictures), size=count - len(pictures))]
        rows = (numpy.arange(8) + random.randint(-1, 2, (len(further), 1))) % 8
        columns = (numpy.arange(8) + random.randint(-1, 2, (len(further), 1))) % 8
        further = further[
            numpy.arange(len(further))[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        further = numpy.clip(further + random.normal(0.0, 0.02, further.shape), -0.9, 0.9)
        pictures = numpy.concatenate([pictures, further])
    return numpy.ascontiguousarray(pictures[:count].reshape(count, VISIBLE))


dataset = digits  # for `inv map`: a function, called there
params = start


def report(sums):
    """For `inv map`: what the sums mean, at the starting point, for the default patches."""
    value, gradient = cost(start(), sums, PATCHES)
    print("cost %.6f, norm of its gradient %.6f" % (value, numpy.linalg.norm(gradient)))


def train(
    master, patches, iterations=50, theta=None, show=None, slices_per_worker=None, combine=False
):
    """Minimize J by at most `iterations` iterations of L-BFGS. Returns (theta, J(theta)).

    master: a jamtasks.Master. show(iteration, cost, milliseconds) is called after each iteration;
    an iteration is one or more evaluations, that is map calls. slices_per_worker: None leaves it to
    jam. combine: hosts add up the sums of their slices, so that each sends one gradient."""
    import time

    from scipy.optimize import minimize

    from jamtasks import DataSet

    data = DataSet(patches)
    size = None
    if slices_per_worker is not None:
        workers = sum(host.workers for host in master.wait() if host.state == "up")
        size = -(-len(patches) // (slices_per_worker * workers))
    module = sys.modules[__name__]
    costs = []

    def evaluate(theta):
        sums = master.run(module, theta, data, slice_size=size, combine="host" if combine else None)
        value, gradient = cost(theta, sums, len(patches))
        costs.append(value)
        return value, gradient

    clock = [0, time.perf_counter()]

    def after_iteration(theta):  # what was evaluated last is what the line search took
        iterations_done, began = clock
        if show is not None:
            show(iterations_done + 1, costs[-1], 1000.0 * (time.perf_counter() - began))
        clock[:] = [iterations_done + 1, time.perf_counter()]

    found = minimize(
        evaluate,
        start() if theta is None else theta,
        jac=True,
        method="L-BFGS-B",
        callback=after_iteration,
        options={"maxiter": iterations, "maxfun": 100 * iterations},
    )
    return found.x, float(found.fun)


def main(words=None):
    """The command line; see the top of this file."""
    import argparse
    import os
    import statistics

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from jamtasks import JamError, Master

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", help="names with commas; default: hosts.yaml, else this machine")
    parser.add_argument("--iterations", type=int, default=50, help="at most (default: 50)")
    parser.add_argument("--patches", type=int, default=PATCHES, help="default: %(default)s")
    parser.add_argument("--slices-per-worker", type=int, help="default: chosen by size")
    parser.add_argument(
        "--combine", action="store_true", help="add up gradients on the hosts, which send one each"
    )
    given = parser.parse_args(words)
    counts = [given.iterations, given.patches]
    if given.slices_per_worker is not None:
        counts.append(given.slices_per_worker)
    if min(counts) < 1:
        parser.error("iterations, patches and slices per worker must be above zero")
    times = []

    def show(iteration, value, milliseconds):
        times.append(milliseconds)
        print("%4d  cost %.6f  %8.1f ms" % (iteration, value, milliseconds), flush=True)

    try:
        with Master(given.hosts) as master:
            _, value = train(
                master,
                digits(given.patches),
                given.iterations,
                show=show,
                slices_per_worker=given.slices_per_worker,
                combine=given.combine,
            )
            workers = master.last_run.workers
    except JamError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print("%s; in the checkout: pip install '.[examples]'" % error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if times:
        print(
            "%d patches, %d workers: %.1f ms per iteration (median), cost %.6f"
            % (given.patches, workers, statistics.median(times), value)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
