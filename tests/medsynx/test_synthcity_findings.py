"""Each finding of docs/synthcity.md on the installed version: a failing test means a mended plugin."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def source(thing) -> str:
    return re.sub(r"\s+", " ", inspect.getsource(thing))


def test_every_plugin_is_seeded_with_zero():
    """Building a network with its defaults fixes the global generators, and so every later 'noise'."""
    import torch
    from synthcity.plugins.core.models.mlp import MLP
    from synthcity.plugins.core.plugin import Plugin

    draws = []
    for _ in range(2):
        MLP(2, 2, device=torch.device("cpu"))
        draws.append((np.random.laplace(size=3).tolist(), torch.randn(3).tolist()))
    assert draws[0] == draws[1]
    assert inspect.signature(Plugin.__init__).parameters["random_state"].default == 0
    assert "enable_reproducible_results(random_state)" in source(Plugin.__init__)


def test_dpgan_trains_its_critic_backwards():
    """The critic's own steps, without any noise: real rows come to score higher without DP, and lower with it."""
    import torch
    from synthcity.plugins.core.models.gan import GAN

    change = {}
    for private in (False, True):
        gan = GAN(
            n_features=2,
            n_units_latent=2,
            batch_size=100,
            discriminator_n_units_hidden=16,
            discriminator_dropout=0,
            clipping_value=0,
            lambda_gradient_penalty=0,
            device=torch.device("cpu"),
        )
        gan.dp_enabled = private
        gan.discriminator.enable_hooks = gan.discriminator.disable_hooks = lambda: None  # Opacus' switches
        real = torch.randn(100, 2) * 0.1 + 3
        before = float(gan.discriminator(real).mean())
        for _ in range(20):
            gan._train_epoch_discriminator(real, None, gan.fake_labels_generator, gan.true_labels_generator)
        change[private] = float(gan.discriminator(real).mean()) - before
    assert change[False] > 0 > change[True], change


def test_dpgan_assumes_poisson_samples_and_stops_on_real_rows():
    from synthcity.plugins.core.models.gan import GAN

    train = source(GAN._train)
    assert "poisson_sampling=False" in train and "make_private_with_epsilon" in train
    assert "_evaluate_patience_metric( X_val" in train and "1 / len(X)" in train
    per_batch = source(GAN._train_epoch_discriminator)
    assert "for epoch in range(self.discriminator_n_iter)" in per_batch, (
        "more noisy steps than the epochs it is charged for"
    )


def test_opacus_drops_the_gradients_that_dpgan_adds_before_the_noise():
    """Whatever is in ``grad`` (fakes, penalty) is overwritten when noise is added."""
    import torch
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    net = GradSampleModule(torch.nn.Linear(1, 1, bias=False))
    weight = next(net.parameters())
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    optimizer = DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=1)
    net(torch.ones(1, 1)).sum().backward()
    weight.grad = torch.full_like(weight, 1e6)  # as a backward pass on fakes would have left it
    optimizer.pre_step()
    assert abs(float(weight.grad)) <= 1


def test_the_encoder_of_networks_is_fitted_to_the_rows_it_is_given():
    """dpgan and pategan hand real rows to it without noise: the largest value of a column is in the encoder."""
    from synthcity.plugins.core.models.tabular_encoder import TabularEncoder

    rows = pd.DataFrame({"x": [*np.linspace(0, 1, 60), 1e6]})
    with_one, without = (TabularEncoder(max_clusters=2).fit(r) for r in (rows, rows[:-1]))
    probe = pd.DataFrame({"x": [0.5, 0.9]})
    assert not np.allclose(
        with_one.transform(probe).to_numpy()[:, 0], without.transform(probe).to_numpy()[:, 0], atol=1e-3
    )


def test_privbayes_divides_the_noise_of_a_count_by_the_number_of_patients():
    from synthcity.plugins.privacy.plugin_privbayes import PrivBayes

    rng, n = np.random.default_rng(0), 2000
    rows = pd.DataFrame({"a": rng.integers(0, 4, n), "b": rng.integers(0, 4, n)})
    found = PrivBayes(epsilon=1.0, K=1)
    scale = found._laplace_noise_parameter(n, 2)
    assert scale == pytest.approx(2 * (2 - 1) / (n * 0.5)), "a count moves by 1 with one patient: 2 / 0.5 = 4 is needed"
    exact = rows.groupby(["a", "b"]).size().to_numpy()
    noisy = found._get_noisy_counts_for_attributes(rows, ["a", "b"])["count"].to_numpy()
    assert np.abs(noisy - exact).max() < 0.1, "the exact counts, for all practical purposes"


def test_privbayes_gives_no_noise_to_cells_without_patients():
    from synthcity.plugins.privacy.plugin_privbayes import PrivBayes

    rows = pd.DataFrame({"a": [0, 0, 1], "b": [0, 0, 1]})
    assert len(PrivBayes(epsilon=1e-3, K=1)._get_noisy_counts_for_attributes(rows, ["a", "b"])) == 2, "of four cells"


def test_aim_spends_its_whole_budget_at_every_draw():
    from synthcity.plugins.core.models.tabular_aim import TabularAIM

    rows = pd.DataFrame({"a": [0, 1, 0, 1], "b": [0, 1, 1, 0]})
    found, runs = TabularAIM(rows).fit(rows), []

    class Made:
        df = rows

    found.model.run = lambda data, workload: runs.append(len(data.df)) or Made()
    assert not runs, "fitting has run nothing"
    found.generate(10)
    found.generate(10)
    assert runs == [4, 4], "the real rows, again for each draw"
    assert inspect.signature(TabularAIM).parameters["epsilon"].default == 1.0


def test_aim_takes_its_domain_from_the_rows():
    from synthcity.plugins.core.models.tabular_aim import TabularAIM

    rows = pd.DataFrame({"a": [0, 1, 0, 1], "b": [0, 1, 2, 2]})
    assert TabularAIM(rows).fit(rows).dataset.domain.shape == (2, 3), "a patient with a rare level changes the domain"


def test_pategan_shows_real_rows_to_its_critic_without_noise():
    """PATE-GAN's student may see generated rows with voted labels only; here the whole GAN is fitted to the real rows."""
    from synthcity.plugins.core.models.gan import GAN
    from synthcity.plugins.privacy.plugin_pategan import PATEGAN

    fit = source(PATEGAN.fit)
    assert "self.model.fit( X_train_enc, fake_labels_generator" in fit and "dp_enabled" not in fit
    assert "real_output = self.discriminator(real_X)" in source(GAN._train_epoch_discriminator)


def test_pategan_does_not_charge_votes_that_find_most_rows_real_and_discards_delta():
    from synthcity.plugins.privacy.plugin_pategan import PATEGAN

    fit = source(PATEGAN.fit)
    assert (
        fit.index("teachers.pate_lamda(")
        < fit.index("return torch.zeros((len(X),)) # Compute alpha")
        < fit.index("self._update_alpha(n0_mb, n1_mb)")
    )
    assert PATEGAN(delta=1e-9).delta is None


def test_strict_drawing_drops_rows_that_occur_twice():
    """Why our students draw without it: a frequent combination would be as rare as a rare one."""
    from synthcity.plugins.core.plugin import Plugin

    assert "iter_samples_df.drop_duplicates()" in source(Plugin._safe_generate)


def test_the_networks_for_images_are_sized_by_the_labels_they_are_shown():
    """A class that a site lacks makes another network there, and most sizes of image have none."""
    import torch
    from synthcity.plugins.core.models.convnet import suggest_image_generator_discriminator_arch as suggest

    def weights(labels, size=32):
        cond = torch.tensor(labels)[:, None]
        _, critic = suggest(4, 1, size, size, cond=cond, device=torch.device("cpu"))
        return {n: tuple(t.shape) for n, t in critic.state_dict().items()}

    assert weights([0, 1, 2]) != weights([0, 1, 1])
    with pytest.raises(ValueError, match="Unsupported"):
        weights([0, 1], 28)


def test_image_plugins_label_images_by_a_classifier_of_real_images():
    from synthcity.plugins.images.plugin_image_adsgan import ImageAdsGANPlugin
    from synthcity.plugins.images.plugin_image_cgan import ImageCGANPlugin

    for plugin in (ImageCGANPlugin, ImageAdsGANPlugin):
        assert "self.label_generator.fit(X.unpack())" in source(plugin._fit)
        assert "sampled_labels = self.label_generator.predict(sampled_images)" in source(plugin._generate)
    assert 'generator_extra_penalties=["identifiability_penalty"]' in source(ImageAdsGANPlugin._fit)


def test_the_image_critic_is_trained_backwards_under_dp():
    """As dpgan's: real images come to score higher without DP, and lower with it. No plugin switches it on."""
    import torch
    from synthcity.plugins.core.models.image_gan import ImageGAN

    class Critic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.of = torch.nn.Linear(16, 1)
            self.enable_hooks = self.disable_hooks = lambda: None  # Opacus' switches

        def forward(self, images, cond=None):
            return self.of(images.flatten(1))

    class Maker(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, noise, cond=None):
            return self.scale * noise.reshape(-1, 1, 4, 4)

    change = {}
    for private in (False, True):
        gan = ImageGAN(
            Maker(), Critic(), n_units_latent=16, n_channels=1, clipping_value=0, lambda_gradient_penalty=0,
            batch_size=50, device=torch.device("cpu"), dp_enabled=private,
        )  # fmt: skip
        gan.discriminator_optimizer = torch.optim.SGD(gan.discriminator.parameters(), 1e-2)
        real = torch.randn(50, 1, 4, 4) * 0.1 + 3
        before = float(gan.discriminator(real).mean())
        for _ in range(20):
            gan._train_epoch_discriminator(real, gan.fake_labels_generator, gan.true_labels_generator)
        change[private] = float(gan.discriminator(real).mean()) - before
    assert change[False] > 0 > change[True], change
