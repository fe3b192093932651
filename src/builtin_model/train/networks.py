"""The parts of a small Stable Diffusion, by their diffusers and transformers classes. Sizes live here and nowhere else."""
import os
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZE = 128                        # pixels
LATENT = SIZE // 8
VAE = (24, 48, 96, 128)           # channels of the autoencoder from full to 1/8 resolution: 3.2 M parameters
UNET = (96, 128, 160)             # channels of the UNet at 16, 8 and 4 latent pixels: 9.4 M parameters
WIDTH, LAYERS = 128, 3            # the text encoder: 1.4 M parameters
LENGTH = 77                       # tokens of a caption


def make_vae(channels=VAE):
    from diffusers import AutoencoderKL
    return AutoencoderKL(block_out_channels=channels, in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=8, sample_size=SIZE,
                         down_block_types=["DownEncoderBlock2D"] * len(channels), up_block_types=["UpDecoderBlock2D"] * len(channels))


def make_unet(channels=UNET, width=WIDTH):
    from diffusers import UNet2DConditionModel
    n = len(channels) - 1
    return UNet2DConditionModel(block_out_channels=channels, layers_per_block=1, sample_size=LATENT, in_channels=4, out_channels=4, cross_attention_dim=width, attention_head_dim=4,
                                norm_num_groups=16, down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * n, up_block_types=["CrossAttnUpBlock2D"] * n + ["UpBlock2D"])


def make_text(tok, width=WIDTH, layers=LAYERS):
    from transformers import CLIPTextConfig, CLIPTextModel
    return CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=4, num_hidden_layers=layers, vocab_size=len(tok), hidden_act="quick_gelu",
                                        max_position_embeddings=LENGTH, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.eos_token_id))


def make_scheduler():
    """v-prediction with zero terminal SNR: plain backgrounds come out plain."""
    from diffusers import DDIMScheduler
    return DDIMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                         prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def load_tokenizer(path="tokenizer"):
    from transformers import CLIPTokenizer
    return CLIPTokenizer.from_pretrained(path)


def tokens(tok, captions):
    return tok(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
